"""A worker's functions are found by name or by content, and never mistaken for one another."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import scripted
import torch

from zrpc.errors import CodeRefused, FrameError, LimitExceeded, LocalFault, UnknownFunction
from zrpc.serialization.archives import canonical, content_hash, method_hash
from zrpc.serialization.codestore import CodeStore, find_operator
from zrpc.serialization.pickler import dumps_script, loads_script
from zrpc.serialization.script import ScriptCallable, describe

X = torch.ones(2)
ELSEWHERE = "__torch__.elsewhere.add"


def load(store: CodeStore, script: ScriptCallable, name: str = ELSEWHERE) -> Any:
    return store.load(name, script.hash, script.archive())


def test_a_scripted_function_of_the_same_content_is_used() -> None:
    script = describe(scripted.add)
    store = CodeStore(accept=False)
    found = store.resolve(script.name, script.hash)
    assert torch.equal(found(*script.bind((X, X), {})), X * 3)  # type: ignore[misc]
    assert store.resolve(script.name, bytes(32)) is None


def test_code_that_is_brought() -> None:
    script = describe(scripted.add)
    store = CodeStore()
    assert store.resolve(ELSEWHERE, script.hash) is None
    assert torch.equal(load(store, script)(X, X, 2), X * 3)
    assert torch.equal(store.resolve(ELSEWHERE, script.hash)(X, X, 2.0), X * 3)  # type: ignore[misc]
    assert "brought=1" in repr(store)


def test_another_function_of_a_known_name() -> None:
    store = CodeStore()
    first, second = describe(scripted.add), describe(scripted.calls_another)
    load(store, first)
    load(store, second)
    assert torch.equal(store.resolve(ELSEWHERE, first.hash)(X, X, 1.0), X * 2)  # type: ignore[misc]
    assert torch.equal(store.resolve(ELSEWHERE, second.hash)(X), torch.tensor([2.0, 4.0]))  # type: ignore[misc]


def test_what_is_brought_cannot_be_called_by_name() -> None:
    store = CodeStore()
    load(store, describe(scripted.add))
    assert store.resolve(ELSEWHERE, None) is None


def test_code_under_a_false_hash() -> None:
    store = CodeStore()
    with pytest.raises(FrameError, match="not what its hash names"):
        store.load(ELSEWHERE, describe(scripted.add).hash, describe(scripted.calls_another).archive())
    with pytest.raises(FrameError):
        store.load(ELSEWHERE, bytes(32), b"nonsense")
    with pytest.raises(LimitExceeded):
        load(CodeStore(code_bytes=100), describe(scripted.add))


def test_a_worker_that_takes_no_code() -> None:
    store = CodeStore(accept=False)
    with pytest.raises(CodeRefused, match=r"elsewhere\.add"):
        store.check_accepts(ELSEWHERE)
    with pytest.raises(CodeRefused):
        load(store, describe(scripted.add))
    CodeStore().check_accepts(ELSEWHERE)


def test_the_cache_is_bounded() -> None:
    scripts = [describe(f) for f in (scripted.add, scripted.calls_another, scripted.nothing)]
    store = CodeStore(max_bytes=sum(len(canonical(s.archive(), 1 << 20)[1]) for s in scripts) - 1)
    load(store, scripts[0])
    load(store, scripts[1])
    assert store.resolve(ELSEWHERE, scripts[0].hash) is not None  # used last
    load(store, scripts[2])
    assert [store.resolve(ELSEWHERE, s.hash) is not None for s in scripts] == [True, False, True]


def test_operators() -> None:
    for name in ("aten::add", "torch.add", "torch.Tensor.add", "torch.nn.functional.linear"):
        operator = find_operator(name)
        if name in ("aten::add", "torch.add"):
            assert torch.equal(operator(X, X), X * 2)  # type: ignore[misc]
    for name in (
        "torch.load",
        "torch.hub.load",
        "torch",
        "torch.nn",
        "os.system",
        "aten::no",
        "no",
        "",
        "::",
        "torch.",
    ):
        assert find_operator(name) is None, name
    for name in ("aten::from_file", "aten::save", "prim::Print", "torch.from_file"):
        assert find_operator(name) is None, name
    assert CodeStore().resolve("aten::neg", None) is not None


def test_own_functions_by_name() -> None:
    store = CodeStore(accept=False)
    assert store.add_local(scripted.add, "sum") == ["sum"]
    assert torch.equal(store.resolve("sum", None)(x=X, y=X), X * 3)  # type: ignore[misc]
    assert store.resolve("__torch__.scripted.nothing", None) is not None
    assert store.resolve("__torch__.scripted.no", None) is None
    with pytest.raises(LocalFault):
        store.add_local(len)


def test_own_modules_keep_their_state() -> None:
    store = CodeStore(accept=False)
    module = torch.jit.script(scripted.Scaler(2.0))
    assert store.add_local(module, "model") == ["model.called", "model.forward"]
    assert store.names() == ["model.called", "model.forward"]
    forward = store.resolve("model.forward", None)
    assert torch.equal(forward(X), X * 2 + 1 + 1)  # type: ignore[misc]
    assert store.resolve("model.called", None)() == 1  # type: ignore[misc]
    assert module.calls == 1
    assert store.add_local(module) == ["Scaler.called", "Scaler.forward"]


def test_a_method_by_value_leaves_its_module_alone() -> None:
    module = torch.jit.script(scripted.Scaler(2.0))
    script = describe(module.forward)
    store = CodeStore()
    method = load(store, script, script.name)
    for _ in range(2):
        body, buffers = dumps_script(script.bind((X,), {}))
        assert torch.equal(method(*loads_script(body, buffers)), X * 2 + 1 + 1)
    assert module.calls == 0
    assert store.resolve(script.name, script.hash) is method
    with pytest.raises(FrameError):
        store.load("__torch__.X.other", script.hash, script.archive())


def test_a_method_does_not_take_other_code() -> None:
    script = describe(torch.jit.script(scripted.Scaler(2.0)).forward)
    method = load(CodeStore(), script, script.name)
    other = torch.jit.script(torch.nn.Linear(2, 2))
    with pytest.raises(CodeRefused):
        method(*describe(other.forward).bind((X,), {}))


def test_a_method_that_is_not_there() -> None:
    module = torch.jit.script(scripted.Scaler(2.0))
    script = describe(module.forward)
    forged = method_hash("absent", content_hash(script.archive()))
    with pytest.raises(UnknownFunction, match="absent"):
        CodeStore().load("__torch__.Scaler.absent", forged, script.archive())


def test_many_threads() -> None:
    store = CodeStore(max_bytes=1)
    scripts = [describe(f) for f in (scripted.add, scripted.calls_another)]
    failures: list[BaseException] = []

    def work(script: ScriptCallable) -> None:
        try:
            for _ in range(20):
                if store.resolve(ELSEWHERE, script.hash) is None:
                    load(store, script)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(script,)) for script in scripts * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
