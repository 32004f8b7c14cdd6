"""`RemoteModule`: a module on another worker, used as if it were here.

One rule: a RemoteModule is a reference and a few words about it; whatever is asked of the module, its owner does.
"""

from __future__ import annotations

import logging
import types
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.remote_device import _remote_device

from zrpc.api import remote, rpc_async, rpc_sync
from zrpc.internal import _internal_rpc_pickler
from zrpc.nn import owner
from zrpc.nn.interfaces import check_interface, scriptable
from zrpc.nn.state import PART_BYTES, load_state, stream_state
from zrpc.nn.unsupported import WithoutParts
from zrpc.rref import RRef
from zrpc.runtime.context import current_agent, running
from zrpc.runtime.futures import Future

logger = logging.getLogger(__name__)
Self = TypeVar("Self", bound="_RemoteModule")

_REMOTE_MODULE_PICKLED_ATTRIBUTES = (
    "on",
    "device",
    "is_device_map_set",
    "is_scriptable",
    "generated_methods",
    "module_rref",
)
"""What goes along when a RemoteModule is sent to another worker."""
_REMOTE_MODULE_ATTRIBUTES_IGNORE_FOR_PICKLING = (*vars(nn.Module()), "forward_async", "forward")
"""What does not: what every module has, and what is made anew."""
_SerializedRemoteModule = namedtuple(  # type: ignore[misc]
    "_SerializedRemoteModule", _REMOTE_MODULE_PICKLED_ATTRIBUTES
)


def begin_forward(
    module_rref: RRef[Any],
    device: str,
    is_device_map_set: bool,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> Future[Any]:
    """Start a call of a module on its owner."""
    return rpc_async(module_rref.owner(), owner.forward, (module_rref, device, is_device_map_set, args, kwargs or {}))


def forward_async(self: _RemoteModule, *args: Any, **kwargs: Any) -> Future[Any]:
    """Call the module; returns a future of what it returns."""
    return begin_forward(self.module_rref, self.device, self.is_device_map_set, args, kwargs)


def forward(self: _RemoteModule, *args: Any, **kwargs: Any) -> Any:
    """Call the module; returns what it returns."""
    return begin_forward(self.module_rref, self.device, self.is_device_map_set, args, kwargs).wait()


class _RemoteModule(WithoutParts):
    """As `RemoteModule`, with an interface for TorchScript."""

    # Attributes are declared where they are made: TorchScript reads the annotations of a class, and cannot with these.

    def __init__(
        self,
        remote_device: str,
        module_cls: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        _module_interface_cls: Any = None,
    ) -> None:
        super().__init__()
        self._prepare_init(remote_device)
        asked = (module_cls, tuple(args or ()), dict(kwargs or {}), self.device)
        if _module_interface_cls is None:
            self._complete(remote(self.on, owner.create_module, asked), None)
        else:
            check_interface(_module_interface_cls)
            created = rpc_sync(self.on, owner.create_scripted, (*asked, _module_interface_cls))
            self._complete(created, _module_interface_cls)

    def _prepare_init(self, remote_device: str) -> None:
        """Find out where the module is to be. Raises `NotInitialized`, and as torch does for what is no device."""
        agent = current_agent("RemoteModule")
        place = _remote_device(remote_device)
        name = place.worker_name()
        on = place.rank() if name is None else name
        if on is None:
            raise ValueError(
                f"Could not find a worker in remote_device: {remote_device}. "
                "The valid format is '<workername>/<device>' or 'rank:<rank>/<device>'"
            )
        agent.peers.find(on)
        self.on: str | int = on
        self.device: str = str(place.device())
        self.is_device_map_set: bool = False  # CUDA tensors arrive by way of the CPU, whatever the device maps say

    def _complete(self, module_rref: RRef[Any], interface: Any) -> None:
        """The reference is there: take it, and the methods that call the module."""
        self.is_scriptable: bool = interface is not None
        self.generated_methods: list[Any] = [forward_async, forward]
        self.module_rref: RRef[Any] = module_rref
        if interface is None:
            self._install_generated_methods()
        else:
            cls: Any = scriptable(type(self), interface, begin_forward)  # type: ignore[arg-type]
            self.__class__ = cls
            self.generated_methods = [cls.forward_async, cls.forward]
            cls.enroll(self)

    def _install_generated_methods(self) -> None:
        for method in self.generated_methods:
            setattr(self, method.__name__, types.MethodType(method, self))

    @staticmethod
    def init_from_module_rref(
        remote_device: str, module_rref: RRef[Any], _module_interface_cls: Any = None
    ) -> _RemoteModule:
        """A RemoteModule for a module that exists, on its owner. Several may share one module.

        `remote_device` is where it is, and the device that inputs are moved to.
        """
        module = RemoteModule.__new__(RemoteModule)
        nn.Module.__init__(module)
        module._prepare_init(remote_device)
        module._complete(module_rref, _module_interface_cls)
        return module

    # ------------------------------------------------------------------------------------ what it does

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; it has no hooks here, those of the module itself run on its owner."""
        return self.forward(*args, **kwargs)

    def remote_parameters(self, recurse: bool = True) -> list[RRef[nn.Parameter]]:
        """References to the module's parameters, as `DistributedOptimizer` takes them; without those of its parts if not
        `recurse`.
        """
        call = (self.module_rref, recurse)
        return rpc_sync(self.module_rref.owner(), owner.parameters_of, call)  # type: ignore[no-any-return]

    def get_module_rref(self) -> RRef[nn.Module]:
        """The reference to the module."""
        return self.module_rref

    def train(self: Self, mode: bool = True) -> Self:
        """Put the module in training mode, or in evaluation mode if not `mode`."""
        rpc_sync(self.module_rref.owner(), owner.set_training, (self.module_rref, mode))
        self.training = mode
        return self

    def eval(self: Self) -> Self:
        """Put the module in evaluation mode."""
        return self.train(False)

    def stream_state_dict(self, part_bytes: int = PART_BYTES) -> Iterator[tuple[str, Any]]:
        """The names and values of the module's `state_dict()`, fetched a part of so many bytes at a time.

        Tensors arrive on the CPU. Do not train meanwhile: each part is read when it is sent.
        """
        return stream_state(self.module_rref, part_bytes)

    def remote_state_dict(self, prefix: str = "", part_bytes: int = PART_BYTES) -> dict[str, Any]:
        """A copy of the module's `state_dict()`, on the CPU, which a module of the same class loads anywhere.

        `prefix` is put before all names.
        """
        return {prefix + name: value for name, value in self.stream_state_dict(part_bytes)}

    def load_remote_state_dict(
        self,
        state: Mapping[str, Any] | Iterable[tuple[str, Any]],
        strict: bool = True,
        part_bytes: int = PART_BYTES,
    ) -> tuple[list[str], list[str]]:
        """Have the module load a state: a mapping, or names and values that are made while they are sent.

        Returns the names that were missing and those that were not expected, and raises `RuntimeError` for them if
        `strict`. The module changes when all has arrived, or not at all.
        """
        return load_state(self.module_rref, state, strict, part_bytes)

    # ------------------------------------------------------------------------------------ how it travels

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on={self.on!r}, device={self.device!r}, module_rref={self.module_rref!r})"

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        raise RuntimeError(
            "Cannot pickle RemoteModule in python pickler. RemoteModule can only be pickled when using RPC"
        )

    @torch.jit.export
    def __setstate__(self, state):  # type: ignore[no-untyped-def]
        raise RuntimeError(
            "Cannot unpickle RemoteModule in python pickler. RemoteModule can only be unpickled when using RPC"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        if running.destination is None and not _internal_rpc_pickler.is_writing():
            self.__getstate__()
        return _remote_module_reducer(self)


class RemoteModule(_RemoteModule):
    """A module that is made on, and stays on, another worker, and is called from here as if it were here.

    `remote_device` is "WORKER/DEVICE", "WORKER" or "rank:RANK/DEVICE", the device being "cpu" if it is left out.
    `module_cls` is called there with `args` and `kwargs`, and what it returns is put on that device. `forward` and
    `forward_async` take what the module takes; within a distributed autograd context, gradients find their way back.

    A RemoteModule may be sent to other workers in calls; they share the module. It cannot be pickled otherwise, and has
    none of the methods of `torch.nn.Module` that work on a module's parts. Raises `NotInitialized` without an agent,
    `UnknownWorker`, and `ValueError` or `RuntimeError` for what is no device; the first use raises what `module_cls` did.
    """

    def __init__(
        self,
        remote_device: str,
        module_cls: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(remote_device, module_cls, args, kwargs)


def _remote_module_reducer(module: _RemoteModule) -> tuple[Any, ...]:
    """A RemoteModule in a message: a function, and what it makes one of."""
    found = vars(module)
    if module.is_scriptable:
        cls: Any = type(module)
        return _scriptable_receiver, (cls.__base__, cls.interface, module.on, module.device, module.module_rref)
    for name in found:
        if name not in _REMOTE_MODULE_PICKLED_ATTRIBUTES and name not in _REMOTE_MODULE_ATTRIBUTES_IGNORE_FOR_PICKLING:
            logger.warning(
                "The new attribute %s of RemoteModule is ignored when it is sent; _REMOTE_MODULE_PICKLED_ATTRIBUTES has "
                "those that go along",
                name,
            )
    return _remote_module_receiver, (type(module), *(found[name] for name in _REMOTE_MODULE_PICKLED_ATTRIBUTES))


def _remote_module_receiver(cls: type[_RemoteModule], *attributes: Any) -> _RemoteModule:
    """The RemoteModule that arrives. It has what was sent, and the methods that call the module, nothing else."""
    module = cls.__new__(cls)
    module.__dict__.update(_SerializedRemoteModule(*attributes)._asdict())
    module._install_generated_methods()
    return module


def _scriptable_receiver(
    cls: type[_RemoteModule], interface: Any, on: str | int, device: str, module_rref: RRef[Any]
) -> _RemoteModule:
    """As `_remote_module_receiver`, for one with an interface, whose methods are made of that."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    module.on, module.device, module.is_device_map_set = on, device, False
    module._complete(module_rref, interface)
    return module
