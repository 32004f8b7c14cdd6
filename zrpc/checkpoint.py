"""Checkpoints of a model that is spread over workers: one file, which one process without zrpc can read.

One rule: the file has what `torch.save` of the same model in one process would have: state dicts, and nothing of zrpc's.

    {"model": {name: tensor, ...}, "optimizer": {...} or None, "schedulers": [{...}, ...], "extra": {...}}
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zrpc.nn.api.remote_module import _RemoteModule
from zrpc.nn.state import load_state, stream_state
from zrpc.rref import RRef

Model = Any
"""A module here, a `RemoteModule`, an RRef to a module, or a mapping of names to these."""

NO_MODEL = "expected a module, a RemoteModule, an RRef to a module, or a mapping of names to these, not {}"


def model_state(model: Model, prefix: str = "") -> dict[str, Any]:
    """A copy of the state dict of a model, on the CPU, its parts' names before the names of their own.

    `model` is a module, a `RemoteModule`, an RRef to a module, a mapping of names to these, or a module that has
    RemoteModules among its parts. Raises `TypeError` for anything else.
    """
    if isinstance(model, _RemoteModule):
        return model.remote_state_dict(prefix)
    if isinstance(model, RRef):
        return {prefix + name: value for name, value in stream_state(model)}
    if isinstance(model, Mapping):
        parts = [model_state(part, f"{prefix}{name}.") for name, part in model.items()]
        return {name: value for part in parts for name, value in part.items()}
    if not isinstance(model, nn.Module):
        raise TypeError(NO_MODEL.format(type(model)))
    if not has_remote_parts(model):
        return {name: _copy(value) for name, value in model.state_dict(prefix=prefix).items()}
    own: dict[str, Any] = {}
    model._save_to_state_dict(own, prefix, keep_vars=False)
    children = {name: child for name, child in model._modules.items() if child is not None}
    return {**{name: _copy(value) for name, value in own.items()}, **model_state(children, prefix)}


def load_model_state(model: Model, state: Mapping[str, Any], strict: bool = True) -> None:
    """Have a model take a state that `model_state` has given, or `state_dict()` of the same model in one process.

    `strict`: raises `RuntimeError` when a part of the model finds names missing or unexpected, and `ValueError` for names
    that belong to no part; parts before it have changed then.
    """
    if isinstance(model, _RemoteModule):
        model.load_remote_state_dict(state, strict)
    elif isinstance(model, RRef):
        load_state(model, state, strict)
    elif isinstance(model, Mapping):
        _load_parts(model, state, strict)
    elif not isinstance(model, nn.Module):
        raise TypeError(NO_MODEL.format(type(model)))
    elif not has_remote_parts(model):
        model.load_state_dict(state, strict)
    else:
        _load_hybrid(model, state, strict)


def _load_parts(parts: Mapping[str, Model], state: Mapping[str, Any], strict: bool) -> None:
    strange = [name for name in state if not any(name.startswith(f"{part}.") for part in parts)]
    if strict and strange:
        raise ValueError(f"the state has names that belong to no part of the model: {', '.join(strange[:10])}")
    for part, model in parts.items():
        start = f"{part}."
        load_model_state(model, {n[len(start) :]: value for n, value in state.items() if n.startswith(start)}, strict)


def _load_hybrid(model: nn.Module, state: Mapping[str, Any], strict: bool) -> None:
    """A module that has parts elsewhere: its own parameters first, then each of its children."""
    children = {name: child for name, child in model._modules.items() if child is not None}
    own = {name: value for name, value in state.items() if not any(name.startswith(f"{part}.") for part in children)}
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    model._load_from_state_dict(own, "", {}, strict, missing, unexpected, errors)
    wrong = [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in unexpected]
    if errors or (strict and wrong):
        raise RuntimeError(f"Error(s) in loading state_dict for {type(model).__name__}: {'; '.join([*errors, *wrong])}")
    _load_parts(children, {name: value for name, value in state.items() if name not in own}, strict)


def has_remote_parts(module: nn.Module) -> bool:
    """Whether a module is, or contains, a RemoteModule."""
    if isinstance(module, _RemoteModule):
        return True
    return any(child is not None and has_remote_parts(child) for child in module._modules.values())


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


# ---------------------------------------------------------------------------------------------- files


def gather(
    model: Model, optimizer: Any = None, schedulers: Sequence[Any] = (), extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `save` writes, as a dict of state dicts. Do not train while it is put together.

    `optimizer` is a `DistributedOptimizer`, or any with `state_dict`; `extra` is kept as it is.
    """
    return {
        "model": model_state(model),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
        "extra": dict(extra or {}),
    }


def save(
    path: str | os.PathLike[str],
    model: Model,
    optimizer: Any = None,
    schedulers: Sequence[Any] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint with `torch.save`. The file is there complete, or as it was before, whatever happens meanwhile."""
    content = gather(model, optimizer, schedulers, extra)
    target = Path(path)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def load(
    path: str | os.PathLike[str], model: Model, optimizer: Any = None, schedulers: Sequence[Any] = ()
) -> dict[str, Any]:
    """Read a checkpoint into a model, an optimizer and schedulers; returns what was given as `extra`.

    The model may be on other workers, in other processes or in one: the names count, and for the optimizer the order of the
    parameters. Reads with `weights_only`, so a file that is not what it should be runs no code. Raises `ValueError` when
    the file has no optimizer, or another number of schedulers; nothing is changed then.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if optimizer is not None and content["optimizer"] is None:
        raise ValueError(f"{path} has no state of an optimizer")
    if len(schedulers) != len(content["schedulers"]):
        raise ValueError(f"{path} has the states of {len(content['schedulers'])} schedulers, not {len(schedulers)}")
    load_model_state(model, content["model"])
    if optimizer is not None:
        optimizer.load_state_dict(content["optimizer"])
    for scheduler, state in zip(schedulers, content["schedulers"], strict=True):
        scheduler.load_state_dict(state)
    return content["extra"]  # type: ignore[no-any-return]
