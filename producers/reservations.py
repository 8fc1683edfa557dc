"""What this process let through and the mirrored states do not contain yet.

A call is held on every scope it counts in: first with its estimate, once it is recorded with what
it used, until the heartbeats of the scope's states say that its record is contained.

Not thread-safe: the gate's lock is held around every call. Times are monotonic seconds.
"""

from collections import deque
from collections.abc import Iterable

from producers.mirror import Entry, Mirror, Standing

MAX_HOLDS = 50_000
OPEN_S = 900.0
"""How long a call may stay open without being recorded or released."""
SENT_S = 3_600.0
"""How long a recorded call is held at most; a pipeline that is further behind is stale."""


class ScopeView:
    """What is known and held of one scope (internal form).

    ``entries`` and ``asked`` are worked out from the mirror when they are None. ``homes`` are the
    partitions of ``budget.state`` that must contain a call before it is let go: None means all.
    """

    __slots__ = ("asked", "cost_nano", "entries", "homes", "is_user", "scope", "tokens")

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.is_user = scope.startswith("user")
        self.tokens = 0
        self.cost_nano = 0
        self.entries: list[Entry] | None = None
        self.asked: list[Standing] | None = None
        self.homes: frozenset[int] | None = None

    @property
    def is_held(self) -> bool:
        return bool(self.tokens or self.cost_nano)


class Hold:
    """One call's reservation. ``views`` are the scopes that still hold it."""

    __slots__ = ("cost_nano", "offset", "org_billed", "since_s", "tokens", "views")

    def __init__(
        self, views: list[ScopeView], tokens: int, cost_nano: int, org_billed: bool, since_s: float
    ) -> None:
        self.views = views
        self.tokens = tokens
        self.cost_nano = cost_nano
        self.org_billed = org_billed
        self.since_s = since_s
        self.offset = -1


class Reservations:
    """All holds of a process, bounded in number and in time; ``lapsed`` counts what that cost."""

    def __init__(self) -> None:
        self.lapsed = 0
        self._count = 0
        self._open: dict[int, Hold] = {}
        self._sent: dict[int, deque[Hold]] = {}

    def __len__(self) -> int:
        """How many calls are held."""
        return self._count

    def reserve(
        self,
        views: list[ScopeView],
        tokens: int,
        cost_nano: int,
        org_billed: bool,
        now_s: float,
        *,
        is_open: bool = True,
    ) -> Hold:
        """Holds a call; one that is open lapses when nothing more is heard of it.

        Cost budgets count a call that is not ``org_billed`` for its user alone.
        """
        hold = Hold(views, tokens, cost_nano, org_billed, now_s)
        if self._count >= MAX_HOLDS:
            self.lapsed += 1
            hold.views = []
            return hold
        self._count += 1
        if is_open:
            self._open[id(hold)] = hold
        _add(hold, tokens, cost_nano)
        return hold

    def settle(self, hold: Hold, tokens: int, cost_nano: int) -> None:
        """Holds what a call has used instead of what it was estimated to."""
        if self._open.pop(id(hold), None) is None:
            return
        _add(hold, tokens - hold.tokens, cost_nano - hold.cost_nano)
        hold.tokens, hold.cost_nano = tokens, cost_nano

    def release(self, hold: Hold) -> None:
        """Holds a call no longer; harmless when it is not held."""
        self._open.pop(id(hold), None)
        if hold.views:
            self._count -= 1
            _add(hold, -hold.tokens, -hold.cost_nano)
            hold.views = []

    def sent(self, hold: Hold, partition: int, offset: int, mirror: Mirror, now_s: float) -> None:
        """The call's record stands on ``usage.events``: hold it until it is contained."""
        hold.offset, hold.since_s = offset, now_s
        # A heartbeat may have been quicker than the acknowledgement.
        self._let_go(hold, _through(mirror, partition))
        if hold.views:
            self._sent.setdefault(partition, deque()).append(hold)

    def contain(self, mirror: Mirror) -> None:
        """Lets go of what the newest heartbeats say the states contain."""
        for source, queue in self._sent.items():
            if not queue:
                continue
            through = _through(mirror, source)
            furthest = max(through.values(), default=0)
            for hold in queue:
                if hold.offset >= furthest:
                    break
                self._let_go(hold, through)
            while queue and not queue[0].views:
                queue.popleft()

    def lapse(self, now_s: float) -> None:
        """Lets go of what has been held for too long."""
        while self._open:
            hold = next(iter(self._open.values()))
            if now_s - hold.since_s < OPEN_S:
                break
            self.lapsed += 1
            self.release(hold)
        for queue in self._sent.values():
            while queue and (not queue[0].views or now_s - queue[0].since_s >= SENT_S):
                hold = queue.popleft()
                self.lapsed += bool(hold.views)
                self.release(hold)

    def _let_go(self, hold: Hold, through: dict[int, int]) -> None:
        kept: list[ScopeView] = []
        gone: list[ScopeView] = []
        for view in hold.views:
            homes = through if view.homes is None else view.homes
            contained = bool(homes) and all(hold.offset < through.get(home, 0) for home in homes)
            (gone if contained else kept).append(view)
        hold.views = gone
        _add(hold, -hold.tokens, -hold.cost_nano)
        hold.views = kept
        if gone and not kept:
            self._count -= 1


def _through(mirror: Mirror, source: int) -> dict[int, int]:
    """By partition of ``budget.state``, the next offset of ``source`` that it contains."""
    return {home: mirror.through(home).get(source, 0) for home in mirror.partitions}


def _add(hold: Hold, tokens: int, cost_nano: int) -> None:
    for view in hold.views:
        view.tokens += tokens
        if hold.org_billed or view.is_user:
            view.cost_nano += cost_nano
        view.asked = None


def homes_of(entries: Iterable[Entry]) -> frozenset[int] | None:
    """The partitions of a scope's own states; None when a wildcard stands in, or nothing does."""
    homes: set[int] = set()
    for entry in entries:
        if entry.partition is None:
            return None
        homes.add(entry.partition)
    return frozenset(homes) if homes else None
