"""What tests of programs that use zrpc need, and what its own tests use."""

from zrpc.testing.cluster import LocalCluster, LocalWorker
from zrpc.testing.faults import Fault, FaultPlan, Injected
from zrpc.testing.faulty import BROKER
from zrpc.testing.timers import ManualTimer

__all__ = ["BROKER", "Fault", "FaultPlan", "Injected", "LocalCluster", "LocalWorker", "ManualTimer"]
