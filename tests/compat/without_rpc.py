"""A program in a torch that has no RPC inside: calls and references between two processes, by zrpc alone.

Run as a script: `without_rpc.py INIT_METHOD`. It says 'done' when all went well.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from importlib.abc import MetaPathFinder
from typing import Any

GONE = ("_rpc_init", "_distributed_rpc", "_dist_autograd_init", "_distributed_autograd")


class Thief(MetaPathFinder):
    """Takes RPC out of torch's C++ part as soon as that is loaded, before anything of torch can look for it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in ("torch._C._distributed_rpc", "torch._C._distributed_autograd"):
            raise ModuleNotFoundError(name)
        if name != "torch._C":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            for attribute in GONE:
                if hasattr(module, attribute):
                    delattr(module, attribute)
                sys.modules.pop(f"torch._C.{attribute}", None)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Thief())

import torch  # noqa: E402

import zrpc as rpc  # noqa: E402
from zrpc import autograd  # noqa: E402
from zrpc.nn import RemoteModule  # noqa: E402
from zrpc.optim import DistributedOptimizer  # noqa: E402


@torch.jit.script
def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


def plus(a: Any, b: Any) -> Any:
    return a + b


def fetch(ref: Any) -> Any:
    return ref.to_here()


def train(other: str) -> None:
    module = RemoteModule(other, torch.nn.Linear, (3, 1))
    optimizer = DistributedOptimizer(torch.optim.SGD, module.remote_parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        with autograd.context() as context_id:
            loss = module(torch.ones(2, 3)).square().sum()
            autograd.backward(context_id, [loss])
            optimizer.step(context_id)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)


def run(rank: int, url: str) -> None:
    options = rpc.TensorPipeRpcBackendOptions(init_method=url, num_worker_threads=4)
    rpc.init_rpc(f"w{rank}", rank=rank, world_size=2, rpc_backend_options=options)
    other = f"w{1 - rank}"
    ones = torch.ones(3)
    assert torch.equal(rpc.rpc_sync(other, torch.add, args=(ones, 1)), ones + 1)
    assert torch.equal(rpc.rpc_async(other, scaled, args=(ones, 3.0)).wait(), ones * 3)
    assert rpc.rpc_sync(other, plus, args=(1, 2)) == 3
    ref = rpc.remote(other, plus, args=("a", "b"))
    assert ref.to_here() == "ab"
    assert rpc.rpc_sync(other, fetch, args=(ref,)) == "ab"
    assert rpc.rpc_sync(other, fetch, args=(rpc.RRef(rank),)) == rank
    train(other)
    rpc.shutdown()


def main(url: str) -> None:
    assert not hasattr(torch._C, "_distributed_rpc")
    assert "torch._C._distributed_rpc" not in sys.modules
    assert not torch.distributed.rpc.is_available()
    workers = [multiprocessing.get_context("fork").Process(target=run, args=(rank, url)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
