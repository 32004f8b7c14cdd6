"""Random computations that run the same in one process and over workers, for comparing their gradients.

One rule: what a step does depends on the program alone; only `call` differs between the two ways to run it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from zrpc.functions import async_execution
from zrpc.rref import RRef
from zrpc.runtime.context import current_agent

WORKERS = ("a", "b", "c", "d", "e")
SIZE = 3
parameters: dict[str, list[torch.Tensor]] = {}
"""Each worker's own leaves: two dense ones, and a table for embeddings with sparse gradients."""


def reset(seed: int) -> None:
    """New parameters, the same for the same seed; the first of each worker has a hook that is not linear."""
    generator = torch.Generator().manual_seed(seed)
    for name in WORKERS:
        dense = [torch.randn(SIZE, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        dense[0].register_hook(lambda gradient: gradient.clamp(-2.0, 2.0))
        table = torch.randn(4, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
        parameters[name] = [*dense, table]


def all_parameters() -> list[torch.Tensor]:
    return [leaf for name in WORKERS for leaf in parameters[name]]


class Cubed(torch.autograd.Function):
    """A function of the user's, with numbers kept for its backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return 0.1 * x**3

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 0.3 * x**2 * gradient


# ------------------------------------------------------------------------------------ what runs on workers


def weighted(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first, second, _ = parameters[where]
    return torch.tanh(x * first + y * second)


def in_place(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y = y.clone()  # it may be x
    x = x.clone() if is_local else x  # what came in a message is one's own
    x *= 0.5
    x[1:] += y[:-1]
    return x.view(1, SIZE).expand(2, SIZE).sum(0)


def two_results(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> Any:
    return {"sum": x + y, "rest": [x * y, 3, "text", torch.arange(3)]}


def embedded(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = torch.tensor([0, 2, 2])
    return x + torch.nn.functional.embedding(rows, parameters[where][2], sparse=True).mean(0) * y.mean()


def custom(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = Cubed.apply(x)  # type: ignore[no-untyped-call]
    return out + y.detach()


def nested(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Uses what it sends on, together with the answer."""
    after = WORKERS[(WORKERS.index(where) + 1) % len(WORKERS)]
    h = torch.sin(x * parameters[where][0])
    z = call(is_local, after, weighted, h, y)
    z = call(is_local, after, in_place, z + h, h)
    return z * h


def and_back(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Calls the worker of the main program."""
    return call(is_local, "a", weighted, x * y, x) - y


def to_itself(where: str, is_local: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return call(is_local, where, weighted, x, y) + x


@async_execution
def later(where: str, x: torch.Tensor, y: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    agent = current_agent()
    future = agent.caller.call_async("b", weighted, ("b", False, x, y), None, -1)
    return future.then(lambda done: done.wait() * x)


def dereferenced(where: str, reference: RRef[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    return weighted(where, False, reference.to_here(), y)


@torch.jit.script
def scripted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * y + x


# ------------------------------------------------------------------------------------ how it is called


def call(is_local: bool, to: str, function: Callable[..., Any], *args: Any) -> Any:
    if is_local:
        return function(to, True, *args)
    return current_agent().caller.call_sync(to, function, (to, False, *args), None, -1)


def by_reference(is_local: bool, to: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if is_local:
        return weighted(to, True, weighted("c", True, x, y), y)
    agent = current_agent()
    made = RRef.of(agent.references, *agent.remote("c", weighted, ("c", False, x, y), None, -1))
    result: torch.Tensor = agent.caller.call_sync(to, dereferenced, (to, made, y), None, -1)
    return result


def fetched(is_local: bool, to: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if is_local:
        return weighted(to, True, x, y)
    agent = current_agent()
    made: RRef[torch.Tensor] = RRef.of(agent.references, *agent.remote(to, weighted, (to, False, x, y), None, -1))
    return made.to_here() * 0.5 + made.to_here() * 0.5


def asynchronous(is_local: bool, to: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if is_local:
        return weighted("b", True, x, y) * x
    result: torch.Tensor = current_agent().caller.call_async(to, later, (to, x, y), None, -1).wait()
    return result


def script(is_local: bool, to: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = (
        scripted(x, y) if is_local else current_agent().caller.call_sync(to, scripted, (x, y), None, -1)
    )
    return result


def operator(is_local: bool, to: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = (
        torch.atan2(x, y) if is_local else current_agent().caller.call_sync(to, torch.atan2, (x, y), None, -1)
    )
    return result


def dictionary(is_local: bool, to: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    found = call(is_local, to, two_results, x, y)
    total: torch.Tensor = found["sum"] + found["rest"][0] * found["rest"][1]
    return total


CALLS = (weighted, in_place, embedded, custom, nested, and_back, to_itself)
FORMS = (by_reference, fetched, asynchronous, script, operator, dictionary)


class Program:
    """A random computation of the worker `a`."""

    def __init__(self, seed: int, workers: int, steps: int) -> None:
        self.seed, self.workers, self.steps = seed, WORKERS[:workers], steps

    def __repr__(self) -> str:
        return f"Program(seed={self.seed}, workers={len(self.workers)}, steps={self.steps})"

    def run(self, is_local: bool) -> Sequence[torch.Tensor]:
        """The roots: one or two scalars."""
        chance = random.Random(self.seed)
        values: list[torch.Tensor] = list(parameters["a"][:2])
        for _ in range(self.steps):
            x, y = chance.choice(values), chance.choice(values)
            kind = chance.random()
            to = chance.choice(self.workers)
            if kind < 0.25:
                values.append(torch.cos(x) * y + 0.5)
            elif kind < 0.7:
                values.append(call(is_local, to, chance.choice(CALLS), x, y))
            else:
                values.append(chance.choice(FORMS)(is_local, to, x, y))
        roots = [torch.tanh(values[-1] * chance.choice(values)).sum()]
        if chance.random() < 0.4:
            roots.append((chance.choice(values) * 0.3).mean() + parameters["a"][0].sum())
        return roots
