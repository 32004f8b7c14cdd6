"""Random schedules of the reference protocol. A failure names its seed: `World(seed, ...)` replays it."""

from __future__ import annotations

import pytest
from rref_world import World

CHUNK = 150

# (name, workers, drop, repeat, deaths, actions)
WORLDS = [
    ("calm", 3, 0.0, 0.0, False, 40),
    ("shuffled", 5, 0.0, 0.3, False, 60),
    ("lossy", 4, 0.3, 0.2, False, 50),
    ("deadly", 5, 0.0, 0.0, True, 60),
    ("everything", 5, 0.2, 0.2, True, 60),
    ("pair", 2, 0.3, 0.3, True, 40),
]


def replay(kind: str, seed: int) -> World:
    _, workers, drop, repeat, deaths, actions = next(world for world in WORLDS if world[0] == kind)
    world = World(seed, workers, drop=drop, repeat=repeat, deaths=deaths)
    try:
        world.run(actions)
    except Exception as error:
        tail = "\n".join(world.trace[-40:])
        raise AssertionError(f"replay({kind!r}, {seed}) at {world.now:.3f} s: {error!r}\n{tail}") from error
    return world


@pytest.mark.parametrize("kind", [world[0] for world in WORLDS])
@pytest.mark.parametrize("chunk", range(5))
def test_schedules(kind: str, chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        replay(kind, seed)
