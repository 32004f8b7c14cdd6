"""The one agent of a process: installed once, forgotten by forked children."""

from __future__ import annotations

import os

import pytest

from zrpc.errors import AlreadyInitialized, NotInitialized
from zrpc.runtime.context import current_agent, find_agent, install_agent, remove_agent
from zrpc.testing import LocalCluster


def in_a_child() -> int:
    """The exit code of a forked child that looks for the agent: 7 if it finds none."""
    child = os.fork()
    if child == 0:
        os._exit(7 if find_agent() is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_one_agent_and_none_in_a_forked_child() -> None:
    with pytest.raises(NotInitialized, match="RPC has not been initialized"):
        current_agent()
    with LocalCluster(["a", "b"]) as cluster:
        install_agent(cluster["a"].agent)
        try:
            assert current_agent() is cluster["a"].agent
            with pytest.raises(AlreadyInitialized, match="worker 'a'"):
                install_agent(cluster["b"].agent)
            remove_agent(cluster["b"].agent)
            assert in_a_child() == 7
            assert find_agent() is cluster["a"].agent
        finally:
            remove_agent(cluster["a"].agent)
    assert find_agent() is None
