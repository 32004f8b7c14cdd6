"""Programs of several ranks, written as for torch's RPC. Run as a script: `ranks.py PROGRAM WORLD_SIZE INIT_METHOD`.

The ranks are forked from this process, which has imported torch and has one thread. It ends with 0 when all of them do.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Barrier, Event
from typing import Any

import pytest
import torch

import zrpc as rpc

forks = multiprocessing.get_context("fork")


class Stage:
    """What the ranks of a program share beside zrpc."""

    def __init__(self, world_size: int, url: str) -> None:
        self.world_size = world_size
        self.url = url
        self.barrier: Barrier = forks.Barrier(world_size)
        self.gone: Event = forks.Event()
        self.rest: Barrier = forks.Barrier(max(1, world_size - 1))
        """For all but the first."""

    def wait(self) -> None:
        self.barrier.wait(60)

    def options(self, **changes: Any) -> Any:
        return rpc.TensorPipeRpcBackendOptions(init_method=self.url, **changes)

    def join(self, rank: int, name: str = "", **changes: Any) -> None:
        arguments = {"world_size": self.world_size, "rank": rank, **changes}
        rpc.init_rpc(name or f"worker{rank}", rpc_backend_options=self.options(), **arguments)


def nothing_is_left() -> None:
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert not names, names
    assert not rpc._is_current_rpc_agent_set()
    assert torch.futures.wait_all.__module__ == torch.futures.Future.wait.__module__ == "torch.futures"


def call_all(world_size: int) -> None:
    for rank in range(world_size):
        assert rpc.rpc_sync(f"worker{rank}", torch.add, args=(torch.ones(1), rank)).item() == 1 + rank


def again(rank: int, stage: Stage) -> None:
    """The same group, three times at one init method."""
    for _ in range(3):
        stage.join(rank)
        call_all(stage.world_size)
        assert rpc.api._all_gather(rank) == {f"worker{r}": r for r in range(stage.world_size)}
        rpc.shutdown()
        nothing_is_left()


def duplicate(rank: int, stage: Stage) -> None:
    """Two ranks have one name: all hear of it, nothing is left, and the next time it works."""
    with pytest.raises(RuntimeError, match="'worker0' is not unique"):
        stage.join(rank, f"worker{rank % (stage.world_size - 1)}")
    nothing_is_left()
    again(rank, stage)


def with_group(rank: int, stage: Stage) -> None:
    """torch's process group at the same address, before and during."""
    url = "env://" if stage.url.startswith("env") else stage.url
    torch.distributed.init_process_group("gloo", init_method=url, rank=rank, world_size=stage.world_size)
    stage.join(rank)
    torch.distributed.barrier()
    call_all(stage.world_size)
    rpc.shutdown()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def come_and_go(rank: int, stage: Stage) -> None:
    """A dynamic group: the first, which has the broker, is gone before the last comes."""
    last = stage.world_size - 1
    if rank == 0:
        stage.join(0, world_size=None)
    stage.wait()
    if 0 < rank < last:
        stage.join(rank, world_size=None)
    stage.wait()
    if rank < last:
        call_all(last)
    stage.wait()
    if rank == 0:
        rpc.shutdown()
        stage.gone.set()
        os._exit(0)
    assert stage.gone.wait(60)
    if 0 < rank < last:
        assert rpc.rpc_sync(f"worker{3 - rank}", torch.add, args=(torch.ones(1), 1)).item() == 2
    stage.rest.wait(60)  # nobody leaves before the other has called it
    if rank == last:
        stage.join(last, world_size=None)
        assert rpc.get_worker_info().id == last
    rpc.shutdown()


def mixed(rank: int, stage: Stage) -> None:
    """A static group, and one that wants to join it without saying of what size it is."""
    last = stage.world_size - 1
    if rank < last:
        stage.join(rank, world_size=last)
    stage.wait()
    if rank == last:
        with pytest.raises(RuntimeError, match="mixes statically and dynamically initialized members"):
            stage.join(rank, world_size=None)
    stage.wait()
    rpc.shutdown()
    nothing_is_left()


def other_secret(rank: int, stage: Stage) -> None:
    """One rank has another secret: it does not get in, and is told what to set."""
    os.environ["ZRPC_SECRET"] = f"a secret of many characters, {rank % 2}"
    if rank == 1:
        with pytest.raises(rpc.errors.ConfigError, match="ZRPC_KEY_FILE"):
            stage.join(rank, world_size=None)
    else:
        stage.join(rank, world_size=None)
    stage.wait()
    rpc.shutdown()


def first_dies(rank: int, stage: Stage) -> None:
    """Rank 0 is killed: the others go on, and their graceful end does not wait for it for ever."""
    stage.join(rank)
    stage.wait()
    if rank == 0:
        os._exit(0)
    assert rpc.rpc_sync(f"worker{3 - rank}", torch.add, args=(torch.ones(1), 1)).item() == 2
    rpc.shutdown()


def uneven(rank: int, stage: Stage) -> None:
    """Who has nothing to do waits in `shutdown`, and serves."""
    stage.join(rank)
    if rank == 1:
        for _ in range(50):
            call_all(stage.world_size)
    rpc.shutdown()


PROGRAMS: dict[str, Callable[[int, Stage], None]] = {
    function.__name__: function
    for function in (again, duplicate, with_group, come_and_go, mixed, other_secret, first_dies, uneven)
}


def main(program: str, world_size: int, url: str) -> int:
    stage = Stage(world_size, url)
    ranks = [forks.Process(target=PROGRAMS[program], args=(rank, stage)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(90)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    print("exit codes", codes)
    return max(1 if code is None else abs(code) for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
