"""The parameters, on a worker of their own: trainers read them and send gradients, when they are there.

Python functions with state of the module's own, called by many at once: a lock guards it.
"""

import threading

import torch
from torch import Tensor

from examples.elastic import functions as f

_lock = threading.Lock()
_parameters = f.initial_parameters(0, f.PIXELS, f.HIDDEN, f.CLASSES)
_momentum = torch.zeros(f.PARAMETERS)
_pushes: dict[str, int] = {}


def pull() -> Tensor:
    """A copy of the parameters, [P]."""
    with _lock:
        return _parameters.clone()


def push(trainer: str, gradient: Tensor, rate: float) -> int:
    """Apply a trainer's gradient, [P]; how many it has sent so far."""
    with _lock:
        f.apply(_parameters, _momentum, gradient, rate)
        _pushes[trainer] = _pushes.get(trainer, 0) + 1
        return _pushes[trainer]


def pushes() -> dict[str, int]:
    """Gradients received, by trainer."""
    with _lock:
        return dict(_pushes)
