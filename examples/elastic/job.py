"""The job: kills trainers at random, watches the accuracy, and ends when that is as it should be.

    zrpc launch configs/elastic.yaml

They are killed (SIGKILL) and told to stop (SIGTERM) in turn; the launcher starts them again.
"""

import os
import queue
import random
import signal
import time

import psutil

import zrpc
from examples.elastic import functions as f
from examples.elastic import server
from examples.quickstart.data import load

LOOK = 0.5
"""Seconds between two looks at the accuracy."""


def trainers() -> dict[str, int]:
    """The processes of the trainers on this host that run now, by name."""
    found = {}
    for process in psutil.process_iter(["pid"]):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("ZRPC_BROKER") == os.environ["ZRPC_BROKER"] and environment.get("ZRPC_ROLE") == "trainer":
            found[environment["ZRPC_NAME"]] = process.pid
    return found


def kill_one(chance: random.Random, number: signal.Signals, seconds: float) -> bool:
    """Kill a trainer that is up; False when there is none."""
    up = {worker.name for worker in zrpc.get_workers()}
    victims = {name: pid for name, pid in trainers().items() if name in up}
    if not victims:
        return False
    name = chance.choice(sorted(victims))
    print(f"{seconds:5.1f} s  {number.name} to {name}", flush=True)
    os.kill(victims[name], number)
    return True


def main(wanted: float = 0.95, kill_every: float = 3.0, kills: int = 3, seed: int = 0) -> int:
    """Train until the accuracy is `wanted` and at least `kills` trainers were killed; 0 when that is so."""
    events: queue.SimpleQueue[zrpc.MembershipEvent] = queue.SimpleQueue()
    zrpc.on_membership(events.put)
    _, held_out = load(seed)
    chance = random.Random(seed)
    began = time.monotonic()
    next_kill, killed, accuracy, seen = kill_every, 0, 0.0, {"joined": 0, "left": 0, "died": 0}
    while accuracy < wanted or killed < kills or seen["joined"] < kills:
        time.sleep(LOOK)
        seconds = time.monotonic() - began
        if seconds >= next_kill:
            next_kill = seconds + kill_every
            killed += kill_one(chance, (signal.SIGKILL, signal.SIGTERM)[killed % 2], seconds)
        weights = zrpc.rpc_sync("parameters", server.pull)
        accuracy = f.count_correct(weights, held_out.x, held_out.y, f.HIDDEN, f.CLASSES) / len(held_out.y)
        while not events.empty():
            event = events.get()
            if event.kind in seen:
                seen[event.kind] += 1
                print(f"{seconds:5.1f} s  {event.worker.name} {event.kind} {event.why}", flush=True)
    pushes = zrpc.rpc_sync("parameters", server.pushes)
    print(f"{killed} trainers were killed; {seen['died']} died, {seen['left']} left, {seen['joined']} came back")
    print(f"gradients: {', '.join(f'{name} {count}' for name, count in sorted(pushes.items()))}")
    print(f"test accuracy {accuracy:.4f} after {time.monotonic() - began:.1f} s", flush=True)
    return 0
