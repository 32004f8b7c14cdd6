"""Optimizers for parameters that are on other workers: `DistributedOptimizer`, by torch's name and with torch's API."""

from zrpc.optim.distributed import DistributedOptimizer

__all__ = ["DistributedOptimizer"]
