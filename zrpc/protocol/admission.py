"""Who is let in: the broker's answers to HELLO, from a newcomer and from a member that is back.

One rule: a HELLO is refused with the reason, or it begins or goes on with a life; the same HELLO again has the same answer.
"""

from __future__ import annotations

from zrpc.errors import InvalidName, JoinRefused, NameTaken, StaleIncarnation, ZrpcError
from zrpc.ids import check_name
from zrpc.protocol.effects import Announce, Effect, GroupFailed, MemberUp, PeerRefused, Send
from zrpc.protocol.lives import Lives
from zrpc.protocol.membership import ABSENT, UP, WAITING, Record
from zrpc.wire.messages import Hello, Refusal


class Admission(Lives):
    """The part of a registry that takes HELLOs."""

    def _on_hello(self, route: bytes, hello: Hello, now: float) -> list[Effect]:
        try:
            check_name(hello.name)
        except InvalidName as error:
            return self._refuse_newcomer(route, hello, error, now)
        if self.groups.failure is not None and hello.strict and hello.world_size:
            return [*self._refuse(route, hello, self.groups.failure), self._note_failure(hello.nonce)]
        other = self.book.by_route.get(route)
        if other is not None and other.name != hello.name:
            return self._refuse(route, hello, JoinRefused(f"this connection is that of worker {other.name!r}."))
        record = self.book.by_name.get(hello.name)
        if hello.incarnation:
            return self._on_return(route, hello, record, now)
        if record is not None and record.hello is not None and record.hello.nonce == hello.nonce:
            if record.is_living:
                return self._answer_again(route, record, now)
            if record.by_will:
                return []  # a HELLO that was overtaken by its own GOODBYE
        if record is not None and record.is_living:
            if record.lost_at is not None or record.route is None:
                return []  # the holder is likely dead; the newcomer asks again, when that is known
            holder = record.member()
            where = f"process {holder.pid} on {holder.host}" if holder.host else holder.address
            return self._refuse_newcomer(route, hello, NameTaken(hello.name, where), now)
        return self._on_newcomer(route, hello, record, now)

    def _answer_again(self, route: bytes, record: Record, now: float) -> list[Effect]:
        self.book.connect(record, route, now)
        if record.state == WAITING:
            return [Send(self.groups.progress(record), route)]
        return [self._welcome(record, now)]

    def _on_newcomer(self, route: bytes, hello: Hello, record: Record | None, now: float) -> list[Effect]:
        if now < self._newcomers_from or not self.admits:
            return []  # it asks again; members of the earlier broker, who have ids, come first
        error = self._limit_refusal() or self.quota.check(hello.name, hello.host, route)
        error = error or self.groups.refusal(hello) or self._rank_refusal(hello, record)
        if error is not None:
            return self._refuse_newcomer(route, hello, error, now)
        record = self.book.claim(hello.name, hello.id)
        self.book.begin_life(record)
        self._begin(record, "joined", route, hello, now)
        self.groups.add(record, waits=True)
        return self._after_change(now, record)

    def _refuse_newcomer(self, route: bytes, hello: Hello, error: ZrpcError, now: float) -> list[Effect]:
        """Refuse a process that is not a member. With it a strict static group fails: all who wait are refused too."""
        effects = self._refuse(route, hello, error)
        if not self.groups.fails_with(hello):
            return effects
        self.groups.failure = error
        told = self._note_failure(hello.nonce)
        for record in self.groups.waiting_static():
            if record.hello is not None and record.route is not None:
                effects.append(Send(Refusal.of(error, record.hello.nonce), record.route))
                told = self._note_failure(record.hello.nonce)
            effects += self._end(record, "left", "its group failed", now)
        return [*effects, told]

    def _note_failure(self, nonce: int) -> Announce:
        groups = self.groups
        groups.failure_told.add(nonce)
        assert groups.failure is not None
        return Announce(GroupFailed(groups.failure, len(groups.failure_told)))

    def _limit_refusal(self) -> ZrpcError | None:
        limit = self.options.max_members
        if self.book.living_count < limit:
            return None
        return JoinRefused(f"the cluster has {limit} members, as many as its broker takes.")

    def _rank_refusal(self, hello: Hello, record: Record | None) -> ZrpcError | None:
        """A static member gets the rank that it asks for, or nothing; others take what is free."""
        if not hello.world_size or hello.id < 0:
            return None
        why = None
        if record is not None and record.state != ABSENT:
            why = f"and has id {record.id} in this cluster already" if record.id != hello.id else None
        elif not self.book.is_id_free(hello.id, hello.name):
            holder = self.book.by_id.get(hello.id)
            why = "which " + (f"is that of worker {holder.name!r}" if holder is not None else "was used before")
        return None if why is None else JoinRefused(f"worker {hello.name!r} asks for rank {hello.id}, {why}.")

    def _on_return(self, route: bytes, hello: Hello, record: Record | None, now: float) -> list[Effect]:
        """A member says HELLO again: its connection was renewed, or this broker does not know it (any more)."""
        if record is not None and record.incarnation == hello.incarnation:
            if record.is_living:
                record.hello = hello
                self.book.connect(record, route, now)
                return [self._welcome(record, now)] if record.state == UP else self._answer_again(route, record, now)
            # Others were told that this life is over, and have given up what was here: it cannot go on as if it were not.
            stale = StaleIncarnation(
                f"worker {record.name!r} has ended, as far as this broker knows ({record.why}), and everybody was told so. "
                "Start it again: it will be a new incarnation."
            )
            return self._refuse(route, hello, stale)
        if record is not None and (record.incarnation > hello.incarnation or record.id != hello.id):
            return self._refuse(route, hello, self._newer_life(hello.name))
        if not self.book.is_id_free(hello.id, hello.name):
            stale = StaleIncarnation(f"the id {hello.id} of worker {hello.name!r} has another worker now.")
            return self._refuse(route, hello, stale)
        effects: list[Effect] = []
        if record is not None and record.is_living:
            if record.route is not None:
                stale = self._newer_life(hello.name)
                effects.append(Send(Refusal.of(stale), record.route, record.incarnation))
            effects += self._end(record, "died", "its name has a newer life", now)
        return effects + self._adopt(route, hello, self.book.claim(hello.name, hello.id), now)

    @staticmethod
    def _newer_life(name: str) -> StaleIncarnation:
        return StaleIncarnation(f"the name {name!r} has a newer life; this one is over.")

    def _adopt(self, route: bytes, hello: Hello, record: Record, now: float) -> list[Effect]:
        error = self._limit_refusal()
        if error is not None:
            return self._refuse(route, hello, error)
        self.book.note_survivor(hello.incarnation)
        self.book.raise_floor(hello.floor)
        if hello.incarnation < self.epoch and not self.is_heir:
            self._newcomers_from = self._return_until
        record.incarnation = hello.incarnation
        record.life = max(record.life, hello.life)
        self._begin(record, "adopted", route, hello, now)
        self.groups.add(record, waits=False)
        self._enter_up(record, now)
        return [Announce(MemberUp(record.member())), self._welcome(record, now), *self._after_change(now, None)]

    def _refuse(self, route: bytes, hello: Hello, error: ZrpcError) -> list[Effect]:
        name = type(error).__name__
        self.refused[name] = self.refused.get(name, 0) + 1
        return [Announce(PeerRefused(hello.name, error)), Send(Refusal.of(error, hello.nonce), route)]
