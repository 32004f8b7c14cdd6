"""Fuzzes the parsers for as long as it is told: with changed copies of good inputs, or (`--atheris`) led by coverage.

    python tests/fuzz/fuzz.py --minutes 10 [--only NAME]... [--seed N]
    python tests/fuzz/fuzz.py --inputs 10000000                            so many over all parsers, as long as it takes
    python tests/fuzz/fuzz.py --atheris "script" -max_total_time=600       (needs `pip install atheris`)

A finding is printed with the input, in hexadecimal; `--input HEX --only NAME` runs it again. Memory is bounded: an input
that makes a parser take more than `ROOM` bytes shows as a MemoryError. A hang ends the process and shows its stack.
"""

from __future__ import annotations

import argparse
import faulthandler
import inspect
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import Target, targets

ROOM = 1 << 30
"""Bytes beyond what the process has at its start."""
BATCH = 500
NUMBERS = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


def mutate(data: bytes, chance: random.Random, others: tuple[bytes, ...]) -> bytes:
    """A changed copy: bytes flipped, numbers replaced, parts cut, doubled, moved, or taken from another input."""
    made = bytearray(data)
    for _ in range(1 << chance.randrange(4)):
        size = len(made)
        kind = chance.randrange(9)
        at = chance.randrange(size + 1)
        if kind == 0 and size:
            made[at % size] ^= 1 << chance.randrange(8)
        elif kind == 1 and size:
            made[at % size] = chance.randrange(256)
        elif kind == 2:
            made[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 3:
            del made[at : at + chance.randrange(1, 9)]
        elif kind == 4:
            width = chance.choice((1, 2, 4, 8))
            number = chance.choice(NUMBERS) & ((1 << 8 * width) - 1)
            made[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
        elif kind == 5:
            part = made[at : at + chance.randrange(1, 64)]
            made[chance.randrange(size + 1) : 0] = part * chance.choice((1, 1, 2, 50))
        elif kind == 6:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            made[at : at + chance.randrange(32)] = other[start : start + chance.randrange(64)]
        elif kind == 7:
            del made[at:]
        elif size:
            made[at % size] = (made[at % size] + chance.choice((-1, 1))) % 256
    return bytes(made)


class Fuzzer:
    """Runs one target after another; keeps inputs that were taken, to go on from."""

    def __init__(self, chosen: list[Target], seed: int) -> None:
        self.chosen = chosen
        self.chance = random.Random(seed)
        self.pools = {target.name: list(target.seeds) for target in chosen}
        self.inputs: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.findings = 0

    def batch(self, target: Target) -> None:
        """Some inputs for one target."""
        pool = self.pools[target.name]
        for _ in range(BATCH):
            data = mutate(self.chance.choice(pool), self.chance, target.seeds)
            self.inputs[target.name] += 1
            if self.try_input(target, data):
                self.taken[target.name] += 1
                if len(data) < 100_000:
                    if len(pool) < 500:
                        pool.append(data)
                    else:
                        pool[self.chance.randrange(len(target.seeds), len(pool))] = data

    def try_input(self, target: Target, data: bytes) -> bool:
        try:
            return target.run(data)
        except Exception:
            self.findings += 1
            if self.findings <= 20:
                print(f"FINDING in {target.name}: {data.hex()[:8000]}", flush=True)
                traceback.print_exc()
            return False

    def run(self, seconds: float, inputs: float = float("inf")) -> None:
        """For so long, or until so many inputs were run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and sum(self.inputs.values()) < inputs:
            for target in self.chosen:
                faulthandler.dump_traceback_later(10 + BATCH * 0.2, exit=True)
                self.batch(target)
        faulthandler.cancel_dump_traceback_later()

    def report(self) -> str:
        lines = [f"{name}: {count:,} inputs, {self.taken[name]:,} taken" for name, count in self.inputs.items()]
        return "\n".join([*lines, f"{sum(self.inputs.values()):,} inputs, {self.findings} findings"])


def bound_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, resource.RLIM_INFINITY))


def functions_of(package: str) -> list[Any]:
    """The functions and methods that the loaded modules of a package define."""
    found: list[Any] = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            for value in list(vars(module).values()):
                members = list(vars(value).values()) if isinstance(value, type) else [value]
                found += [one for one in members if inspect.isfunction(one) and one.__module__ == name]
    return found


def run_atheris(target: Target, arguments: list[str]) -> None:
    import atheris  # an extra of developers', not declared

    folder = Path(os.environ.get("FUZZ_CORPUS", "/tmp")) / f"zrpc-fuzz-{target.name.replace(' ', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(target.seeds):
        (folder / f"seed-{index}").write_bytes(data)
    for function in functions_of("zrpc"):  # all that is loaded would take minutes: torch is among it
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *arguments, str(folder)], lambda data: target.run(data) and None)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--inputs", type=int, help="run until there were so many, instead of --minutes")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--input", help="one input, in hexadecimal")
    parser.add_argument("--atheris", metavar="NAME")
    given, rest = parser.parse_known_args()
    known = targets()
    if given.atheris:
        run_atheris(known[given.atheris], rest)
        return 0
    fuzzer = Fuzzer([known[name] for name in given.only or known], given.seed)
    bound_memory()
    if given.input:
        print(fuzzer.try_input(fuzzer.chosen[0], bytes.fromhex(given.input)))
    else:
        print(f"seed {given.seed}", flush=True)
        began = time.monotonic()
        fuzzer.run(given.minutes * 60 if given.inputs is None else float("inf"), given.inputs or float("inf"))
        seconds = time.monotonic() - began
        print(f"{seconds:.0f} s, {sum(fuzzer.inputs.values()) / seconds:,.0f} a second")
        print(fuzzer.report())
    return int(fuzzer.findings > 0)


if __name__ == "__main__":
    raise SystemExit(main())
