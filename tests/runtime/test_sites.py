"""Where something was made, as text."""

from __future__ import annotations

import functools
import threading

import torch

from zrpc.ids import WorkerInfo
from zrpc.runtime.sites import Site, made_here, name_of


def name_by_id(worker_id: int) -> WorkerInfo:
    return WorkerInfo(f"worker-{worker_id}", worker_id)


def test_it_names_the_line_of_the_program() -> None:
    site = made_here("remote(f)")
    line = test_it_names_the_line_of_the_program.__code__.co_firstlineno + 1
    here = test_it_names_the_line_of_the_program.__name__
    assert site.describe(name_by_id) == f"remote(f) at {__file__}:{line} in {here}"


def test_frames_of_zrpc_are_passed_over() -> None:
    namespace = {"__name__": "zrpc.somewhere", "made_here": made_here}
    exec("def make():\n    return made_here('here')", namespace)
    site = namespace["make"]()  # type: ignore[operator]
    assert f"at {__file__}:" in site.describe(name_by_id)


def test_a_thread_of_the_pool_has_no_line_of_the_program() -> None:
    namespace = {"__name__": "zrpc.somewhere", "made_here": made_here, "found": []}
    exec("def make():\n    found.append(made_here('received from b'))", namespace)
    thread = threading.Thread(target=namespace["make"])  # type: ignore[arg-type]
    thread.start()
    thread.join()
    assert [site.describe(name_by_id) for site in namespace["found"]] == ["received from b"]  # type: ignore[attr-defined]


def test_it_names_the_worker_that_had_a_hand_in_it() -> None:
    site = Site("received from", worker_id=3)
    assert site.describe(name_by_id) == "received from 'worker-3'"
    site.function = "m:f"
    assert site.describe(name_by_id) == "received from 'worker-3' in a call of m:f"


def test_with_the_calls_that_led_there() -> None:
    lines = made_here("here", True).describe(name_by_id).splitlines()
    assert lines[0].startswith(f"here at {__file__}:")
    assert any(test_with_the_calls_that_led_there.__name__ in line for line in lines[1:])
    assert Site("without a place", None, True).describe(name_by_id) == "without a place"


def test_names_of_functions() -> None:
    scripted = torch.jit.script(name_of_nothing)
    assert [name_of(f) for f in ("aten::add", torch.add, dict.fromkeys, Site.__init__, functools.partial(print))] == [
        "aten::add",
        "add",
        "dict.fromkeys",
        "Site.__init__",
        "partial",
    ]
    assert name_of(scripted) == "name_of_nothing"


def name_of_nothing(x: torch.Tensor) -> torch.Tensor:
    return x
