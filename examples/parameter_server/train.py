"""A parameter server and its trainers, written for `torch.distributed.rpc`.

    python -m zrpc.compat examples/parameter_server/train.py --trainers 3

The server collects one gradient of each trainer, takes a step, and answers them all with the new parameters: a function
with `async_execution`, so that no thread waits. The data is made up: points of a line with noise.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading

import torch
import torch.distributed.rpc as rpc
import torch.multiprocessing as mp
from torch import Tensor, nn

SERVER = "server"
TRUE_WEIGHT = torch.tensor([[2.0, -3.0, 0.5]])


class ParameterServer:
    """Holds the model, and takes one step for each round of gradients."""

    def __init__(self, trainers: int) -> None:
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.trainers = trainers
        self.lock = threading.Lock()
        self.arrived = 0
        self.next_parameters: torch.futures.Future[dict[str, Tensor]] = torch.futures.Future()

    def parameters(self) -> dict[str, Tensor]:
        """The parameters, as they are now."""
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    @staticmethod
    @rpc.functions.async_execution
    def exchange(server: rpc.RRef, gradients: dict[str, Tensor]) -> torch.futures.Future[dict[str, Tensor]]:
        """Give the gradients of one batch; get the parameters after the step that takes those of all trainers."""
        self = server.local_value()
        with self.lock:
            for name, value in self.model.named_parameters():
                share = gradients[name] / self.trainers
                value.grad = share if value.grad is None else value.grad + share
            self.arrived += 1
            answer = self.next_parameters
            if self.arrived == self.trainers:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.arrived = 0
                self.next_parameters = torch.futures.Future()
                answer.set_result(self.parameters())
        return answer


def train(server: rpc.RRef, rank: int, steps: int) -> float:
    """Train on batches of one's own; returns the last loss."""
    torch.manual_seed(rank)
    model = nn.Linear(3, 1)
    model.load_state_dict(server.rpc_sync().parameters())
    loss = torch.tensor(0.0)
    for _ in range(steps):
        x = torch.randn(32, 3)
        y = x @ TRUE_WEIGHT.t() + 0.01 * torch.randn(32, 1)
        model.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters()}
        model.load_state_dict(rpc.rpc_sync(SERVER, ParameterServer.exchange, args=(server, gradients)))
    return float(loss.detach())


def run(rank: int, trainers: int, steps: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    name = SERVER if rank == 0 else f"trainer{rank}"
    rpc.init_rpc(name, rank=rank, world_size=trainers + 1)
    if rank == 0:
        server = rpc.RRef(ParameterServer(trainers))
        futures = [rpc.rpc_async(f"trainer{r}", train, args=(server, r, steps)) for r in range(1, trainers + 1)]
        losses = torch.futures.wait_all(futures)
        weight = server.local_value().model.weight.detach()
        error = float((weight - TRUE_WEIGHT).abs().max())
        print(f"{trainers} trainers, {steps} steps: last losses {[round(loss, 5) for loss in losses]}")
        print(f"weight {[round(w, 3) for w in weight[0].tolist()]}, off by at most {error:.4f}")
        assert error < 0.05
    rpc.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    mp.spawn(run, args=(arguments.trainers, arguments.steps, free_port()), nprocs=arguments.trainers + 1)


if __name__ == "__main__":
    main()
