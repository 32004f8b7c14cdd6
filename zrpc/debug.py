"""What torch's programs ask the library about itself: the agent as an object, and the debug counters.

One rule: this module only shows; it keeps nothing.
"""

from __future__ import annotations

from zrpc import autograd
from zrpc.clock import wait_for_interpreter
from zrpc.ids import WorkerInfo
from zrpc.runtime.agent import Agent
from zrpc.runtime.context import current_agent, find_agent


class RpcAgent:
    """This process's worker, as `torch.distributed.rpc` shows its agents."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __repr__(self) -> str:
        return f"<RpcAgent {self._agent.info.name} id={self._agent.info.id}>"

    @property
    def name(self) -> str:
        """This worker's name."""
        return self._agent.info.name

    @property
    def is_static_group(self) -> bool:
        """Whether the group was given a size when it was made."""
        return self._agent.is_static

    def get_worker_info(self, worker: str | int | None = None) -> WorkerInfo:
        """Name and id of a worker, of this one if none is given. Raises `UnknownWorker`."""
        return self._agent.info if worker is None else self._agent.peers.find(worker).info

    def get_worker_infos(self) -> list[WorkerInfo]:
        """All workers that are up, by id, this one included."""
        members = sorted(self._agent.members(), key=lambda member: member.id)
        return [WorkerInfo(member.name, member.id) for member in members]

    def get_debug_info(self) -> dict[str, str]:
        """Counters of the agent, as text."""
        agent = self._agent
        pool = agent.executor.statistics()
        return {
            "agent.num_pending_requests": str(agent.caller.pending()),
            "agent.thread_pool_size": str(agent.options.num_worker_threads),
            "agent.num_idle_threads": str(max(0, agent.options.num_worker_threads - pool.running)),
            "agent.client_active_calls": str(agent.caller.pending()),
            "agent.server_active_calls": str(pool.running + pool.queued),
            "agent.server_active_async_calls": str(pool.blocked),
            **({"agent.gil_average_wait_time_us": str(wait_for_interpreter() * 1e6)} if agent.samples_gil else {}),
        }


TensorPipeAgent = RpcAgent


def _get_current_rpc_agent() -> RpcAgent:
    """The agent of this process. Raises `NotInitialized` without one."""
    return RpcAgent(current_agent())


def _is_current_rpc_agent_set() -> bool:
    """Whether there is an agent."""
    return find_agent() is not None


def enable_gil_profiling(flag: bool) -> None:
    """Have `get_debug_info()` of the agent say how long a thread waits for Python's lock, on average, when it is asked."""
    current_agent("enable_gil_profiling").samples_gil = bool(flag)


def _set_rpc_timeout(seconds: float) -> None:
    """Set the time-out of calls that name none, from now on; 0 for none."""
    current_agent("_set_rpc_timeout").caller.rpc_timeout = float(seconds)


def get_rpc_timeout() -> float:
    """The time-out of calls that name none, in seconds; 0 is none. Raises `NotInitialized` without an agent."""
    return current_agent("get_rpc_timeout").caller.rpc_timeout


def _rref_context_get_debug_info() -> dict[str, str]:
    """Counters of the references: num_owner_rrefs (values here that others refer to, or may), num_forks,
    num_pending_users, num_pending_futures (messages that are not confirmed yet)."""
    found = current_agent("_rref_context_get_debug_info").references.statistics()
    return {
        "num_owner_rrefs": str(found.num_shared_owners),
        "num_forks": str(found.num_forks),
        "num_pending_users": str(found.num_pending_users),
        "num_pending_futures": str(found.num_pending_futures),
    }


def _get_debug_info() -> dict[str, str]:
    """All the counters: of the references, the agent and the distributed autograd engine."""
    return {
        **_rref_context_get_debug_info(),
        **_get_current_rpc_agent().get_debug_info(),
        **autograd._get_debug_info(),
    }
