"""A trainer: computes gradients of its part of the data for as long as it lives.

It may be killed at any moment. What it would have sent is lost, and nobody waits for it: the parameters live elsewhere.
When it is told to stop (SIGTERM), it keeps its place in its data, and its next life goes on there.
"""

import os
from pathlib import Path

import zrpc
from examples.elastic import functions as f
from examples.elastic import server
from examples.quickstart.data import load
from zrpc.errors import Unavailable

PARTS = 3


class Place:
    """Which batch comes next; kept in a file by `save`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.number = 0

    def save(self) -> None:
        self._path.write_text(str(self.number))

    def restore(self) -> None:
        if self._path.exists():
            self.number = int(self._path.read_text())


def main(batch: int = 64, rate: float = 0.05) -> None:
    """Train until told to stop."""
    me = zrpc.get_worker_info().name
    train, _ = load(0)
    part = train.shards(PARTS)[int(os.environ.get("ZRPC_INDEX", "0")) % PARTS]
    place = Place(Path(os.environ.get("ELASTIC_STATE", ".")) / f"{me}.place")
    zrpc.on_checkpoint(place.save, place.restore)
    print(f"life {zrpc.restart_count() + 1} begins at batch {place.number}", flush=True)
    while not zrpc.stop_requested():
        try:
            weights = zrpc.rpc_sync("parameters", server.pull)
            gradient, _ = f.gradient(weights, part.x, part.y, place.number, batch, f.HIDDEN, f.CLASSES)
            zrpc.rpc_sync("parameters", server.push, args=(me, gradient, rate))
        except Unavailable:
            if zrpc.stop_requested():
                return
            zrpc.wait_for("parameters")  # it has been lost, and comes back under its name
            continue
        place.number += 1
