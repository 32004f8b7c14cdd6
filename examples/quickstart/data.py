"""The data of the quickstart: scikit-learn's handwritten digits, 1797 pictures of 8 by 8 pixels in 10 classes."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

MAX_PIXEL = 16.0


@dataclass(frozen=True)
class Split:
    """Pictures [n, 64] with values from 0 to 1, and their classes [n]."""

    x: Tensor
    y: Tensor

    def batch(self, number: int, size: int) -> "Split":
        """So many rows, going around."""
        rows = (torch.arange(size) + number * size) % len(self.y)
        return Split(self.x[rows], self.y[rows])

    def shards(self, count: int) -> "list[Split]":
        """Equal parts, as near as may be."""
        return [Split(x, y) for x, y in zip(self.x.tensor_split(count), self.y.tensor_split(count), strict=True)]


def load(seed: int, held_out: float = 0.2) -> tuple[Split, Split]:
    """The data to train on and the part held out for the test, in an order that `seed` decides."""
    pictures, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(pictures, dtype=torch.float32)[order] / MAX_PIXEL
    y = torch.tensor(classes, dtype=torch.int64)[order]
    kept = round(len(classes) * held_out)
    return Split(x[kept:], y[kept:]), Split(x[:kept], y[:kept])
