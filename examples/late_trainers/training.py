"""What runs on the parameter server and on the trainers.

A trainer fetches the parameters within a distributed autograd context, so the gradients of its loss go back to the server's
own parameters, and its optimizer has the server take a step with them. Trainers do not wait for one another: a gradient
may be one or two steps old when it is used.

Shapes: n pictures of 64 pixels, 10 classes.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812
from torch.optim import SGD

import zrpc
from examples.quickstart.data import Split
from zrpc import autograd
from zrpc.optim import DistributedOptimizer


class Classifier(nn.Sequential):
    """[n, 64] -> [n, 10]"""

    def __init__(self, hidden: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def parameters_of(model: "zrpc.RRef[nn.Module]") -> dict[str, Tensor]:
    """All parameters, in one message. Runs on the server."""
    return dict(model.local_value().named_parameters())


def references_to(model: "zrpc.RRef[nn.Module]") -> "list[zrpc.RRef[nn.Parameter]]":
    """References to the parameters. Runs on the server."""
    return [zrpc.RRef(parameter) for parameter in model.local_value().parameters()]


def fetch(model: "zrpc.RRef[nn.Module]") -> dict[str, Tensor]:
    """The parameters, copied here."""
    return zrpc.rpc_sync(model.owner(), parameters_of, args=(model,))


def announce() -> None:
    """The entry of a trainer: it is up, and tells the job."""
    zrpc.rpc_sync("job", "examples.late_trainers.job:has_joined", args=(zrpc.get_worker_info().name,))


def train(
    model: "zrpc.RRef[nn.Module]", shard: Split, coordinator: "zrpc.RRef[object]", hidden: int, batch: int, rate: float
) -> int:
    """Train on a shard of the data until the coordinator says that it is enough; returns the number of steps."""
    name = zrpc.get_worker_info().name
    here = Classifier(hidden)  # for its structure: the parameters are the server's
    optimizer = DistributedOptimizer(SGD, zrpc.rpc_sync(model.owner(), references_to, args=(model,)), lr=rate)
    steps = 0
    goes_on = True
    while goes_on:
        rows = shard.batch(steps, batch)
        with autograd.context() as context_id:
            loss = F.cross_entropy(functional_call(here, fetch(model), (rows.x,)), rows.y)
            autograd.backward(context_id, [loss])
            optimizer.step(context_id)
        steps += 1
        goes_on = coordinator.rpc_sync().has_stepped(name, float(loss.detach()))
    return steps
