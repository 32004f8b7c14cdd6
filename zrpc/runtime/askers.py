"""Ways back to whoever sent a message here: where its answer goes.

One rule: an answer goes the way that its request came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zrpc.transport.base import Frames

if TYPE_CHECKING:
    from zrpc.runtime.agent import Agent
    from zrpc.transport.local import LocalLink


class RouteAsker:
    """The way back along a route of the listener."""

    __slots__ = ("_agent", "_route")

    def __init__(self, agent: Agent, route: bytes) -> None:
        self._agent = agent
        self._route = route

    def answer(self, frames: Frames) -> None:
        """Send frames back. Raises `Unavailable` when the route is closed."""
        agent = self._agent
        if agent.listener.send(self._route, frames) and agent.listener_source is not None:
            agent.receiver.nudge(agent.listener_source)


class LocalAsker:
    """The way back to this worker itself."""

    __slots__ = ("_agent",)

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def answer(self, frames: Frames) -> None:
        """Take frames as a reply."""
        self._agent.on_reply_frames(frames)


class LaneAsker:
    """The way back along a lane."""

    __slots__ = ("_link",)

    def __init__(self, link: LocalLink) -> None:
        self._link = link

    def answer(self, frames: Frames) -> None:
        """Send frames back. Raises `Unavailable` when the lane is closed."""
        self._link.send(frames)
