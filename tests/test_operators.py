"""The operator that makes a call from inside TorchScript."""

from __future__ import annotations

import pytest
import torch

from zrpc.errors import LocalFault, UnknownFunction
from zrpc.operators import register_operators
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster

register_operators()


@torch.jit.script
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.jit.script
def both_ways(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + 1, x - 1


@torch.jit.script
def caller(to: str, x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        x = torch.ops.zrpc.call(to, "twice", [x])[0]
    up, down = torch.ops.zrpc.call(to, "both_ways", [x])
    return up + down + torch.ops.zrpc.call(to, "aten::mul", [x, x], 5.0)[0]


def count() -> int:
    return 3


def test_a_script_function_calls_workers() -> None:
    register_operators()
    with LocalCluster(["a", "b"]) as cluster:
        code = cluster["b"].agent.code
        code.add_local(twice, "twice")
        code.add_local(both_ways, "both_ways")
        install_agent(cluster["a"].agent)
        try:
            x = torch.ones(3)
            assert torch.equal(caller("b", x), 4 * x + 4 * x)
            # The function itself may run on another worker, and call back from there.
            assert torch.equal(cluster["a"].rpc_sync("b", caller, ("b", x)), 8 * x)
            with pytest.raises(LocalFault, match="returned a int"):
                torch.ops.zrpc.call("b", f"{__name__}:count", [])
            with pytest.raises(UnknownFunction, match="nothing"):
                torch.ops.zrpc.call("b", "nothing", [x])
        finally:
            remove_agent(cluster["a"].agent)
