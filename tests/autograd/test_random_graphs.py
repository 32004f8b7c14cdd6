"""Gradients over workers are those of the same mathematics in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import programs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import WORKERS, Program

from zrpc import autograd
from zrpc.runtime.context import running
from zrpc.testing import LocalCluster

LONG = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(WORKERS) as made:
        yield made


@pytest.fixture(autouse=True)
def as_a(cluster: LocalCluster) -> Iterator[None]:
    running.agent = cluster["a"].agent
    yield
    running.agent = None


def local_gradients(program: Program) -> list[torch.Tensor | None]:
    leaves = programs.all_parameters()
    found = torch.autograd.grad(list(program.run(True)), leaves, allow_unused=True)
    return [None if gradient is None else gradient.to_dense() for gradient in found]


def gathered(cluster: LocalCluster, context_id: int) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for name in WORKERS:
        contexts = cluster[name].agent.values.contexts
        context = contexts.find(context_id) if contexts else None
        if isinstance(context, autograd.DistAutogradContext):
            for leaf, gradient in context.gradients.items():
                assert id(leaf) not in found
                found[id(leaf)] = gradient.to_dense()
    return found


def check(cluster: LocalCluster, context_id: int, expected: list[torch.Tensor | None], times: int = 1) -> None:
    found = gathered(cluster, context_id)
    for leaf, gradient in zip(programs.all_parameters(), expected, strict=True):
        mine = found.pop(id(leaf), None)
        assert (mine is None) == (gradient is None), f"{leaf}: {mine}, in one process {gradient}"
        if gradient is not None and mine is not None:
            torch.testing.assert_close(mine, gradient * times, rtol=1e-9, atol=1e-11)
        assert leaf.grad is None
    assert not found


def open_passes(cluster: LocalCluster, context_id: int) -> int:
    contexts = [cluster[name].agent.values.contexts for name in WORKERS]
    found = [book.find(context_id) for book in contexts if book is not None]
    return sum(len(context.passes) for context in found if isinstance(context, autograd.DistAutogradContext))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31), workers=st.integers(1, 5), steps=st.integers(1, 14))
def test_gradients_are_those_of_one_process(cluster: LocalCluster, seed: int, workers: int, steps: int) -> None:
    program = Program(seed, workers, steps)
    programs.reset(seed)
    expected = local_gradients(program)
    with autograd.context() as context_id:
        autograd.backward(context_id, program.run(False))
        check(cluster, context_id, expected)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 10))
def test_a_graph_that_is_kept_gives_the_same_again(cluster: LocalCluster, seed: int, steps: int) -> None:
    program = Program(seed, 3, steps)
    programs.reset(seed)
    expected = local_gradients(program)
    with autograd.context() as context_id:
        roots = program.run(False)
        for _ in range(3):
            autograd.backward(context_id, roots, retain_graph=True)
        check(cluster, context_id, expected, times=3)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 10))
def test_a_second_computation_in_the_same_context(cluster: LocalCluster, seed: int, steps: int) -> None:
    """The first graph is used up, or was never used at all; the gradients add up."""
    program = Program(seed, 3, steps)
    programs.reset(seed)
    expected = local_gradients(program)
    with autograd.context() as context_id:
        autograd.backward(context_id, program.run(False))
        Program(seed + 1, 3, steps).run(False)
        autograd.backward(context_id, program.run(False))
        check(cluster, context_id, expected, times=2)


def test_contexts_in_threads(cluster: LocalCluster) -> None:
    """Threads, each with a context of its own, over the same parameters."""
    programs.reset(1)
    jobs = [Program(seed, 5, 8) for seed in range(6)]
    expected = [local_gradients(program) for program in jobs]
    errors: list[BaseException] = []
    ready = threading.Barrier(len(jobs))

    def run(number: int) -> None:
        running.agent = cluster["a"].agent
        try:
            with autograd.context() as context_id:
                roots = jobs[number].run(False)
                ready.wait(LONG)
                autograd.backward(context_id, roots)
                check(cluster, context_id, expected[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert errors == []
