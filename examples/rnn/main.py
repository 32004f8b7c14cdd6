"""A language model whose large tables are on another worker, written for `torch.distributed.rpc`.

    python -m zrpc.compat examples/rnn/main.py --steps 60

The trainer has the recurrent part; the embedding and the decoder, which grow with the vocabulary, are on the server. A
forward pass calls there twice; distributed autograd takes the gradients back the same way, and the distributed optimizer
takes a step on both. The language is made up: each sequence counts up by one or by two, which has to be found out from its
beginning.
"""

from __future__ import annotations

import argparse
import os
import socket

import torch
import torch.distributed.autograd as dist_autograd
import torch.distributed.rpc as rpc
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.optim import DistributedOptimizer

SERVER, TRAINER = "server", "trainer"
VOCABULARY, WIDTH, LENGTH, BATCH = 30, 32, 12, 16


class Table(nn.Module):
    """The embedding: [n, t] tokens -> [n, t, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)


class Decoder(nn.Module):
    """[n, t, WIDTH] -> [n, t, VOCABULARY] scores of the next token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.scores = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, states: Tensor) -> Tensor:
        return self.scores(states)


def parameter_rrefs(module: rpc.RRef) -> list[rpc.RRef]:
    """References to a module's parameters; runs where the module is."""
    return [rpc.RRef(parameter) for parameter in module.local_value().parameters()]


class Model(nn.Module):
    """The whole model, as the trainer sees it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = rpc.remote(SERVER, Table)
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.decoder = rpc.remote(SERVER, Decoder)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        embedded = self.table.rpc_sync().forward(tokens)
        states, state = self.rnn(embedded, state)
        return self.decoder.rpc_sync().forward(states), state

    def all_parameters(self) -> list[rpc.RRef]:
        """References to the parameters, those here and those on the server."""
        here = [rpc.RRef(parameter) for parameter in self.rnn.parameters()]
        there = [rpc.rpc_sync(SERVER, parameter_rrefs, args=(part,)) for part in (self.table, self.decoder)]
        return here + there[0] + there[1]


def sequences(number: int) -> Tensor:
    """A batch of sequences, [BATCH, LENGTH + 1]."""
    generator = torch.Generator().manual_seed(number)
    first = torch.randint(VOCABULARY, (BATCH, 1), generator=generator)
    pace = torch.randint(1, 3, (BATCH, 1), generator=generator)
    return (first + pace * torch.arange(LENGTH + 1)) % VOCABULARY


def train(steps: int) -> None:
    model = Model()
    optimizer = DistributedOptimizer(torch.optim.Adam, model.all_parameters(), lr=0.02)
    losses = []
    state = (torch.zeros(1, BATCH, WIDTH), torch.zeros(1, BATCH, WIDTH))
    for number in range(steps):
        tokens = sequences(number)
        with dist_autograd.context() as context_id:
            scores, _ = model(tokens[:, :-1], state)
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
            dist_autograd.backward(context_id, [loss])
            optimizer.step(context_id)
        losses.append(float(loss.detach()))
    with torch.no_grad():
        tokens = sequences(steps)
        guessed = model(tokens[:, :-1], state)[0].argmax(2)
    right = float((guessed[:, 1:] == tokens[:, 2:]).float().mean())
    print(f"{steps} steps: loss {losses[0]:.3f} -> {losses[-1]:.3f}, {right:.0%} of the next tokens right")
    assert losses[-1] < losses[0] / 4


def run(rank: int, steps: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    rpc.init_rpc(TRAINER if rank == 0 else SERVER, rank=rank, world_size=2)
    if rank == 0:
        train(steps)
    rpc.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    mp.spawn(run, args=(parser.parse_args().steps, free_port()), nprocs=2)


if __name__ == "__main__":
    main()
