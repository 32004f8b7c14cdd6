"""The mathematics: TorchScript functions on one flat vector of parameters.

Shapes: n rows of PIXELS inputs, HIDDEN units, CLASSES outputs, P parameters in all.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

PIXELS = 64
HIDDEN = 32
CLASSES = 10
PARAMETERS = PIXELS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES


@torch.jit.script
def initial_parameters(seed: int, pixels: int, hidden: int, classes: int) -> Tensor:
    """Random weights and zero biases, [P]."""
    generator = torch.Generator(device="cpu")
    generator.manual_seed(seed)
    first = torch.randn([hidden, pixels], generator=generator) / float(pixels) ** 0.5
    second = torch.randn([classes, hidden], generator=generator) / float(hidden) ** 0.5
    return torch.cat([first.flatten(), torch.zeros([hidden]), second.flatten(), torch.zeros([classes])])


@torch.jit.script
def logits(parameters: Tensor, x: Tensor, hidden: int, classes: int) -> Tensor:
    """The network: [P], [n, pixels] -> [n, classes]."""
    pixels = x.size(1)
    w1, b1, w2, b2 = parameters.split([hidden * pixels, hidden, classes * hidden, classes])
    h = torch.relu(F.linear(x, w1.view(hidden, pixels), b1))
    return F.linear(h, w2.view(classes, hidden), b2)


@torch.jit.script
def gradient(
    parameters: Tensor, x: Tensor, y: Tensor, step: int, batch: int, hidden: int, classes: int
) -> tuple[Tensor, Tensor]:
    """Gradient [P] and loss [] of the step's batch of this shard: `batch` rows of it, going around."""
    rows = (torch.arange(batch) + step * batch) % x.size(0)
    weights = parameters.detach().requires_grad_(True)
    loss = F.cross_entropy(logits(weights, x[rows], hidden, classes), y[rows])
    grad = torch.autograd.grad([loss], [weights])[0]
    assert grad is not None
    return grad, loss.detach()


@torch.jit.script
def apply(parameters: Tensor, momentum: Tensor, mean_gradient: Tensor, rate: float) -> float:
    """A step of momentum, in place on the worker that holds the parameters; the length of the gradient."""
    momentum.mul_(0.9).add_(mean_gradient)
    parameters.sub_(momentum, alpha=rate)
    return float(mean_gradient.norm())


@torch.jit.script
def count_correct(parameters: Tensor, x: Tensor, y: Tensor, hidden: int, classes: int) -> int:
    """How many rows the network puts in their class."""
    return int((logits(parameters, x, hidden, classes).argmax(1) == y).sum())
