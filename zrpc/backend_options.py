"""What `init_rpc` is told in programs that are written for `torch.distributed.rpc`.

One rule: names, defaults and errors are torch's; `AgentOptions` has more, and `to_agent_options` is the way there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zrpc.constants import DEFAULT_INIT_METHOD, DEFAULT_NUM_WORKER_THREADS, DEFAULT_RPC_TIMEOUT_SEC
from zrpc.options import AgentOptions

Device = int | str | torch.device
DeviceMap = Mapping[Any, Any]


class RpcBackendOptions:
    """The options that every backend has: `rpc_timeout` in seconds (0: none) and `init_method`, a URL."""

    def __init__(self, rpc_timeout: float = DEFAULT_RPC_TIMEOUT_SEC, init_method: str = DEFAULT_INIT_METHOD) -> None:
        _check(self, "rpc_timeout", rpc_timeout, (int, float))
        _check(self, "init_method", init_method, (str,))
        self.rpc_timeout = rpc_timeout
        self.init_method = init_method

    def __repr__(self) -> str:
        fields = ", ".join(f"{name.lstrip('_')}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"


class TensorPipeRpcBackendOptions(RpcBackendOptions):
    """The options of torch's TensorPipe backend, by the same names, for zrpc.

    `num_worker_threads`: user functions that run at once on this worker. `device_maps`: for each callee by name, a map of
    this worker's devices to those there; whatever it says, tensors arrive on the device of the same name, and results of
    a RemoteModule on the CPU. `devices`: this worker's CUDA devices. `_transports` and `_channels` name parts of
    TensorPipe. These three are taken and have no effect. Raises `TypeError` for a wrong type and `ValueError` for a device
    map that is not one to one.
    """

    def __init__(
        self,
        *,
        num_worker_threads: int = DEFAULT_NUM_WORKER_THREADS,
        rpc_timeout: float = DEFAULT_RPC_TIMEOUT_SEC,
        init_method: str = DEFAULT_INIT_METHOD,
        device_maps: Mapping[str, DeviceMap] | None = None,
        devices: Sequence[Device] | None = None,
        _transports: Sequence[str] | None = None,
        _channels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rpc_timeout, init_method)
        _check(self, "num_worker_threads", num_worker_threads, (int,))
        if num_worker_threads < 1:
            raise ValueError(f"num_worker_threads must be positive, got {num_worker_threads}")
        self.num_worker_threads = num_worker_threads
        self.device_maps = {name: _device_map(found) for name, found in (device_maps or {}).items()}
        self.devices = [_cuda_device(device) for device in devices or ()]

    def set_device_map(self, to: str, device_map: DeviceMap) -> None:
        """Add to the device map for callee `to`. Raises `ValueError` when the whole is not one to one."""
        added = _device_map(device_map)
        known = self.device_maps.get(to, {})
        for mine, theirs in added.items():
            if known.get(mine, theirs) != theirs:
                raise ValueError(
                    f"`set_device_map` only supports 1-to-1 mapping, trying to map {mine} to {theirs} and {known[mine]}"
                )
        self.device_maps[to] = {**known, **added}

    def set_devices(self, devices: Sequence[Device]) -> None:
        """Set this worker's CUDA devices."""
        self.devices = [_cuda_device(device) for device in devices]

    def check_device_maps(self, names: Sequence[str], own_name: str) -> None:
        """Raise `ValueError` when a device map is for a worker that is not in the group of `names`."""
        if not set(self.device_maps) <= set(names):
            raise ValueError(
                f"Node {own_name} has invalid target node names in its device maps\n"
                f"device maps = {self.device_maps.keys()}\nnode names = {sorted(names)}"
            )

    def unlike_names(self) -> dict[str, str]:
        """By callee, what its device map says that is not done: devices that would be mapped to others there."""
        found = {
            name: ", ".join(f"{mine} to {theirs}" for mine, theirs in devices.items() if mine != theirs)
            for name, devices in self.device_maps.items()
        }
        return {name: text for name, text in found.items() if text}

    def to_agent_options(self, base: AgentOptions) -> AgentOptions:
        """`base` with what is said here."""
        return base.replace(rpc_timeout=float(self.rpc_timeout), num_worker_threads=self.num_worker_threads)


def _check(options: RpcBackendOptions, name: str, value: object, types: tuple[type, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, types):
        wanted = types[-1].__name__
        raise TypeError(
            f"__init__(): incompatible constructor arguments. {type(options).__name__} takes {name}: {wanted}, "
            f"not {value!r} of type {type(value).__name__}"
        )


def _device(device: Device) -> torch.device:
    """The device; a number is a CUDA device's, also on a machine that has none."""
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _device_map(device_map: DeviceMap) -> dict[torch.device, torch.device]:
    mapped: dict[torch.device, torch.device] = {}
    for mine, theirs in ((_device(key), _device(value)) for key, value in device_map.items()):
        other = next((key for key, value in mapped.items() if value == theirs), None)
        if other is not None:
            raise ValueError(f"`device_map` only supports 1-to-1 mapping, trying to map {mine} and {other} to {theirs}")
        mapped[mine] = theirs
    return mapped


def _cuda_device(device: Device) -> torch.device:
    found = _device(device)
    if found.type != "cuda":
        raise ValueError(f"`set_devices` expect a list of CUDA devices, but got device type {found.type}.")
    return found
