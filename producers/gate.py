"""May this call go ahead? Decided in memory, from mirrored states and this process's own calls."""

import threading
import time
from collections.abc import Callable, Iterator
from math import inf

from pipeline.core.budgets import Heartbeat, StateRecord
from pipeline.core.decision import INITIALIZING, LIVE, Verdict, choose, decide_unsure
from pipeline.core.scopes import ALL, RecordKey, is_wildcard, scope_id, scope_kind
from producers.mirror import Mirror, Standing
from producers.reservations import Hold, Reservations, ScopeView, homes_of

MAX_VIEWS = 50_000
TICK_S = 1.0
SAME_TIME_S = 0.1
"""For so long the time of the newest heartbeat is carried on without asking the mirror again."""


Ids = tuple[str | None, str | None, str | None, str | None]
"""Whom a call counts for: port, user, organization, group; None and empty are not asked about."""


class Gate:
    """Mirror, reservations and decision behind one lock; serves any number of threads.

    ``check`` takes no lock unless something it asks has changed. ``on_stale`` decides while no
    policy is known. ``clock`` is monotonic, ``wall_clock`` counts seconds since 1970.
    """

    def __init__(
        self,
        on_stale: str = "allow",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._mirror = Mirror()
        self._reservations = Reservations()
        self._on_stale = on_stale
        self._clock = clock
        self._wall_clock = wall_clock
        # Reentrant: a view is worked out within a decision that may already hold it.
        self._lock = threading.RLock()
        self._all = ScopeView(ALL)
        self._views: dict[str, dict[str, ScopeView]] = {
            kind: {} for kind in ("port", "user", "org", "group")
        }
        self._freshness = INITIALIZING
        self._due_s = 0.0
        self._reset_s = inf
        self._time = (inf, 0)
        self._changed = threading.Condition()

    # -- asking ----------------------------------------------------------------------------

    def check(self, ids: Ids, tokens: int, cost_nano: int) -> Verdict:
        """The verdict on a call with these estimates; nothing is held for it."""
        now_s = self._clock()
        if now_s >= self._due_s:
            self._tick(now_s)
        return self._decide(self._views_of(ids), tokens, cost_nano, now_s)

    def admit(
        self, ids: Ids, tokens: int, cost_nano: int, org_billed: bool = True
    ) -> tuple[Verdict, Hold | None]:
        """As ``check``; a call that is allowed is held until it is recorded or released."""
        now_s = self._clock()
        with self._lock:
            if now_s >= self._due_s:
                self._tick(now_s)
            views = self._views_of(ids)
            verdict = self._decide(views, tokens, cost_nano, now_s)
            if not verdict.allowed:
                return verdict, None
            return verdict, self._reservations.reserve(views, tokens, cost_nano, org_billed, now_s)

    @property
    def freshness(self) -> str:
        """That of the mirror as a whole."""
        now_s = self._clock()
        with self._lock:
            self._tick(now_s)
        return self._freshness

    @property
    def policies(self) -> int:
        """How many states are mirrored."""
        return len(self._mirror)

    @property
    def held(self) -> int:
        """How many calls are held: open, recorded, or sent and not yet contained."""
        return len(self._reservations)

    @property
    def lapsed(self) -> int:
        """How many calls were let go because there were too many, or they took too long."""
        return self._reservations.lapsed

    @property
    def unreadable(self) -> int:
        """How many records of ``budget.state`` could not be read."""
        return self._mirror.unreadable

    def wait_live(self, timeout_s: float) -> bool:
        """Waits until the mirror has caught up; whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._freshness != INITIALIZING, timeout_s)

    # -- what calls come to ----------------------------------------------------------------

    def hold(self, ids: Ids, tokens: int, cost_nano: int, org_billed: bool = True) -> Hold:
        """Holds what a call has used that went ahead without asking."""
        with self._lock:
            views = self._views_of(ids)
            return self._reservations.reserve(views, tokens, cost_nano, org_billed, self._clock())

    def settle(
        self, hold: Hold, ids: Ids, tokens: int, cost_nano: int, org_billed: bool = True
    ) -> Hold:
        """The call has used this much, for these ids; it is held until its record is contained."""
        with self._lock:
            views = self._views_of(ids)
            if hold.views == views and hold.org_billed == org_billed:
                self._reservations.settle(hold, tokens, cost_nano)
                return hold
            self._reservations.release(hold)  # it has lapsed, or came to count for others
            return self.hold(ids, tokens, cost_nano, org_billed)

    def release(self, hold: Hold) -> None:
        """The call used nothing, or its record will never be counted."""
        with self._lock:
            self._reservations.release(hold)

    def sent(self, hold: Hold, partition: int, offset: int) -> None:
        """The call's record stands at this place of ``usage.events``."""
        with self._lock:
            self._reservations.sent(hold, partition, offset, self._mirror, self._clock())

    # -- what the follower brings ----------------------------------------------------------

    def begin(self, partitions: int) -> None:
        """All states of so many partitions are about to be sent."""
        with self._lock:
            self._mirror.begin(partitions)

    def take(self, partition: int, key: bytes | str, value: bytes | None) -> None:
        """Takes one record of ``budget.state``."""
        with self._lock:
            now_s = self._clock()
            taken = self._mirror.take(partition, key, value, now_s)
            if isinstance(taken, Heartbeat):
                self._time = (inf, 0)
                self._reservations.contain(self._mirror)
                if self._freshness not in (LIVE, INITIALIZING):
                    self._due_s = 0.0
            elif isinstance(taken, StateRecord):
                self._forget(taken.state.scope)
            elif isinstance(taken, RecordKey):
                self._forget(taken.scope)

    def caught_up(self, partitions: int | None = None) -> None:
        """All states that were there at ``begin`` have been taken."""
        with self._lock:
            now_s = self._clock()
            self._mirror.caught_up(now_s, partitions)
            self._forget_all()
            self._reservations.contain(self._mirror)
            self._tick(now_s)
        with self._changed:
            self._changed.notify_all()

    # -- inside ----------------------------------------------------------------------------

    def _decide(self, views: list[ScopeView], tokens: int, cost_nano: int, now_s: float) -> Verdict:
        asked: list[Standing] = []
        for view in views:
            standing = view.asked
            asked += self._work_out(view, now_s) if standing is None else standing
        chosen = choose(asked, tokens, cost_nano)
        if chosen is None:
            return decide_unsure(None, self._freshness, self._on_stale)
        policy, allowed = chosen
        policy.as_of_ms = self._mirror.contained_ms(policy.entry)
        return policy.permit() if allowed else policy.refuse()

    def _views_of(self, ids: Ids) -> list[ScopeView]:
        port_id, user_id, organization_id, group_id = ids
        kinds = self._views
        views = [self._all]
        if port_id:
            views.append(kinds["port"].get(port_id) or self._new_view("port", port_id))
        if user_id:
            views.append(kinds["user"].get(user_id) or self._new_view("user", user_id))
        if organization_id:
            views.append(
                kinds["org"].get(organization_id) or self._new_view("org", organization_id)
            )
        if group_id:
            views.append(kinds["group"].get(group_id) or self._new_view("group", group_id))
        return views

    def _new_view(self, kind: str, any_id: object) -> ScopeView:
        plain_id = str(any_id)
        with self._lock:
            views = self._views[kind]
            known = views.get(plain_id)
            if known is not None:
                return known
            if len(views) >= MAX_VIEWS:
                self._views[kind] = views = {i: v for i, v in views.items() if v.is_held}
            view = ScopeView(f"{kind}=*" if plain_id == "*" else f"{kind}:{plain_id}")
            views[plain_id] = view
            return view

    def _work_out(self, view: ScopeView, now_s: float) -> list[Standing]:
        with self._lock:
            entries = view.entries
            if entries is None:
                now_ms = self._now_ms(now_s)
                entries = view.entries = self._mirror.entries(view.scope, now_ms)
                view.homes = homes_of(entries)
                for entry in entries:
                    ends_in_s = (entry.record.state.resets_at_ms - now_ms) / 1000
                    self._reset_s = min(self._reset_s, now_s + ends_in_s)
                self._due_s = min(self._due_s, self._reset_s)
            tokens, cost_nano = view.tokens, view.cost_nano
            asked = [
                self._mirror.ask(
                    entry, now_s, cost_nano if entry.record.state.unit == "cost" else tokens
                )
                for entry in entries
            ]
            view.asked = asked
            return asked

    def _now_ms(self, now_s: float) -> int:
        known_s, known_ms = self._time
        if known_s <= now_s < known_s + SAME_TIME_S:
            return known_ms + int((now_s - known_s) * 1000)
        now_ms = self._mirror.now_ms(now_s)
        if now_ms is None:
            return int(self._wall_clock() * 1000)
        self._time = (now_s, now_ms)
        return now_ms

    def _tick(self, now_s: float) -> None:
        """Looks at what passes with time alone: freshness, ends of periods, forgotten calls."""
        with self._lock:
            freshness = self._mirror.freshness(now_s)
            if now_s >= self._reset_s:
                self._reset_s = inf
                self._forget_all()
            elif freshness != LIVE or freshness != self._freshness:
                for view in self._all_views():
                    view.asked = None
            self._freshness = freshness
            self._reservations.lapse(now_s)
            self._due_s = min(now_s + TICK_S, self._mirror.turns_stale_s(now_s), self._reset_s)

    def _forget(self, scope: str) -> None:
        """What is known of a scope has changed; a wildcard's change is every id's of its kind."""
        if scope == ALL:
            changed = [self._all]
        elif is_wildcard(scope):
            changed = list(self._views[scope_kind(scope)].values())
        else:
            view = self._views[scope_kind(scope)].get(scope_id(scope))
            changed = [] if view is None else [view]
        for view in changed:
            view.entries = view.asked = None

    def _forget_all(self) -> None:
        for view in self._all_views():
            view.entries = view.asked = None

    def _all_views(self) -> Iterator[ScopeView]:
        yield self._all
        for views in self._views.values():
            yield from views.values()
