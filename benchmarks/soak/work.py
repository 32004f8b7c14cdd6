"""What the callers of the soak ask of its worker, again and again."""

from __future__ import annotations

import torch

import zrpc

SERVER = "server"


@torch.jit.script
def add(tensor: torch.Tensor, number: int) -> torch.Tensor:
    return tensor * 2 + number


def multiply(tensor: torch.Tensor, by: float) -> torch.Tensor:
    return tensor * by


def call_all(sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)) -> int:
    """One round of everything; returns how many calls it made."""
    small = torch.ones(8)
    for number in range(20):
        zrpc.rpc_sync(SERVER, add, args=(small, number))
    zrpc.rpc_sync(SERVER, multiply, args=(small, 2.0))
    for future in [zrpc.rpc_async(SERVER, add, args=(small, number)) for number in range(50)]:
        future.wait()
    for size in sizes:
        zrpc.rpc_sync(SERVER, add, args=(torch.ones(size), 1))
    kept = [zrpc.remote(SERVER, add, args=(small, number)) for number in range(4)]
    for reference in kept:
        reference.to_here()
    with zrpc.autograd.context() as context:
        leaf = torch.ones(8, requires_grad=True)
        zrpc.autograd.backward(context, [zrpc.rpc_sync(SERVER, multiply, args=(leaf, 3.0)).sum()])
    return 20 + 1 + 50 + len(sizes) + 2 * len(kept) + 2
