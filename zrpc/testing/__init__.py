"""What tests of programs that use zrpc need, and what its own tests use."""

from zrpc.testing.cluster import LocalCluster, LocalWorker

__all__ = ["LocalCluster", "LocalWorker"]
