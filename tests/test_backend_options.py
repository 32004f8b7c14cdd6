"""Options and backends by torch's names: defaults, and errors in torch's words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch

from zrpc.backend_options import RpcBackendOptions, TensorPipeRpcBackendOptions
from zrpc.backend_registry import (
    BackendType,
    backend_registered,
    check_backend,
    construct_rpc_backend_options,
    register_backend,
)
from zrpc.options import AgentOptions


def test_defaults_are_torchs() -> None:
    options = TensorPipeRpcBackendOptions()
    assert (options.num_worker_threads, options.rpc_timeout, options.init_method) == (16, 60.0, "env://")
    assert (options.device_maps, options.devices) == ({}, [])


def test_fields_can_be_set_and_go_to_the_agent() -> None:
    options = TensorPipeRpcBackendOptions(num_worker_threads=3, _transports=["uv"], _channels=["basic"])
    options.rpc_timeout = 7
    options.init_method += "x"
    made = options.to_agent_options(AgentOptions(drain_timeout=2.0))
    assert (made.num_worker_threads, made.rpc_timeout, made.drain_timeout) == (3, 7.0, 2.0)


@pytest.mark.parametrize(
    "wrong", [{"rpc_timeout": timedelta()}, {"rpc_timeout": "1"}, {"num_worker_threads": 1.5}, {"init_method": 3}]
)
def test_a_wrong_type_is_a_type_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        TensorPipeRpcBackendOptions(**wrong)


def test_there_is_at_least_one_thread() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        TensorPipeRpcBackendOptions(num_worker_threads=0)


def test_device_maps_are_one_to_one() -> None:
    options = TensorPipeRpcBackendOptions(device_maps={"w": {0: 1}})
    options.set_device_map("w", {"cuda:1": 2})
    assert options.device_maps == {
        "w": {torch.device("cuda:0"): torch.device("cuda:1"), torch.device("cuda:1"): torch.device("cuda:2")}
    }
    for wrong in ({0: 3}, {2: 0, 3: 0}):
        with pytest.raises(ValueError, match="only supports 1-to-1 mapping"):
            options.set_device_map("w", wrong)
    with pytest.raises(ValueError, match="invalid target node names"):
        options.check_device_maps(["a", "b"], "a")
    options.check_device_maps(["a", "w"], "a")


def test_what_device_maps_say_that_is_not_done() -> None:
    options = TensorPipeRpcBackendOptions(device_maps={"a": {0: 0}, "b": {"cuda:0": "cuda:1", 1: 0, 2: 2}})
    assert options.unlike_names() == {"b": "cuda:0 to cuda:1, cuda:1 to cuda:0"}


def test_devices_are_cuda_devices() -> None:
    with pytest.raises(ValueError, match="expect a list of CUDA devices, but got device type cpu"):
        TensorPipeRpcBackendOptions(devices=["cpu"])
    options = TensorPipeRpcBackendOptions()
    options.set_devices([0])
    assert options.devices == [torch.device("cuda:0")]


class ForeignOptions(RpcBackendOptions):
    """Of a backend that nobody knows."""


@pytest.mark.parametrize(
    ("backend", "options", "words"),
    [
        ("TENSORPIPE", None, "Argument backend must be a member of BackendType"),
        (None, {"init_method": "env://"}, "Argument rpc_backend_options must be an instance of RpcBackendOptions"),
        (None, ForeignOptions(), "Could not infer backend for options"),
        (BackendType.TENSORPIPE, ForeignOptions(), "`rpc_backend_options` must be a `TensorPipeRpcBackendOptions`"),
    ],
)
def test_wrong_backends_are_type_errors(backend: Any, options: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        check_backend(backend, options)


def test_there_is_one_backend() -> None:
    assert repr(BackendType["TENSORPIPE"]) == "BackendType.TENSORPIPE"
    assert backend_registered("TENSORPIPE")
    assert construct_rpc_backend_options(BackendType.TENSORPIPE, 5.0, "x").rpc_timeout == 5.0
    for name, words in (("TENSORPIPE", "already registered"), ("OTHER", "takes no others")):
        with pytest.raises(RuntimeError, match=words):
            register_backend(name, None, None)
