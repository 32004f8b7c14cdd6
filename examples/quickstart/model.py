"""The two halves of the quickstart's network, each for a worker of its own.

Shapes: n pictures of PIXELS values, HIDDEN features of each, CLASSES scores.
"""

import torch
from torch import Tensor, nn

PIXELS = 64
CLASSES = 10


class Features(nn.Module):
    """The first half: [n, PIXELS] -> [n, hidden]."""

    def __init__(self, hidden: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(PIXELS, hidden)

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.relu(self.layer(pictures))


class Scores(nn.Module):
    """The second half: [n, hidden] -> [n, CLASSES]."""

    def __init__(self, hidden: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed + 1)
        self.layer = nn.Linear(hidden, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


@torch.jit.script
def count_correct(scores: Tensor, classes: Tensor) -> int:
    """How many pictures have the highest score in their class: [n, CLASSES], [n] -> a number."""
    return int((scores.argmax(1) == classes).sum())
