"""The fold of events into day cells: the same whatever the stream is cut into."""

from collections import defaultdict
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.cells import Totals, packed, sum_totals, unpacked
from pipeline.core.events import PricedEvent
from pipeline.core.totals import DAY_US, SHARDS, SourceTotals, shard_of

ids = st.sampled_from(["", "a", "b", "*", "all", "org:a"])
events = st.builds(
    PricedEvent,
    event_id=st.just("e"),
    occurred_at_us=st.integers(-3 * DAY_US, 3 * DAY_US),
    port_id=st.sampled_from(["a", "b", "all"]),
    provider=st.just("p"),
    model=st.just("m"),
    user_id=ids,
    organization_id=ids,
    group_id=ids,
    billing_scope=st.sampled_from(["org", "user"]),
    input_tokens=st.integers(0, 10**10),
    output_tokens=st.integers(0, 10**10),
    cost_nano=st.none() | st.integers(0, 2**70),
)
streams = st.lists(events, max_size=40)


def recount(stream: list[PricedEvent]) -> dict[tuple[str, int], Totals]:
    """The definition, as plainly as it can be put."""
    cells: dict[tuple[str, int], list[Totals]] = defaultdict(list)
    for event in stream:
        cost_nano = event.cost_nano
        org = event.billing_scope == "org"
        amounts = (
            1,
            event.input_tokens + event.output_tokens,
            cost_nano or 0,
            (cost_nano or 0) if org else 0,
            int(cost_nano is None),
            int(cost_nano is None and org),
        )
        scopes = ["all", f"port:{event.port_id}"]
        for kind in ("user", "organization", "group"):
            ident = getattr(event, f"{kind}_id")
            if ident:
                scopes.append(f"{kind[:3] if kind[0] == 'o' else kind}:{ident}")
        for scope in scopes:
            cells[scope, event.occurred_at_us // DAY_US].append(amounts)
    return {place: sum_totals(parts) for place, parts in cells.items()}


def cells_of(totals: SourceTotals) -> dict[tuple[str, int], Totals]:
    return {(scope, day): amounts for scope, day, amounts in totals.cells()}


@given(streams, st.lists(st.integers(0, 40)))
def test_the_fold_is_the_same_in_any_cut(stream: list[PricedEvent], cuts: list[int]) -> None:
    totals = SourceTotals()
    told: dict[tuple[str, int], Totals] = {}
    bounds = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, end in pairwise(bounds):
        totals.add(stream[start:end])
        changed = totals.take_changed()
        places = {(cell.scope, cell.day): cell.totals() for cell in changed}
        assert len(places) == len(changed)
        assert places.keys() == recount(stream[start:end]).keys()
        told |= places
    assert cells_of(totals) == told == recount(stream)
    assert len(totals) == len(told)
    assert totals.take_changed() == []


@given(st.lists(streams, max_size=6), st.integers(-4, 4))
def test_cells_rest_once_their_day_is_over_and_wake_as_they_were(
    parts: list[list[PricedEvent]], oldest_day: int
) -> None:
    totals, seen = SourceTotals(), list[PricedEvent]()
    for part in parts:
        totals.add(part)
        seen += part
        changed = totals.take_changed()
        expected = recount(seen)
        told = {(cell.scope, cell.day): cell.totals() for cell in changed}
        assert told == {place: expected[place] for place in recount(part)}
        for _ in range(SHARDS + 1):
            assert totals.take_changed() == []
        assert cells_of(totals) == expected
        assert len(totals) == len(expected)
        newest = max((day for _, day in expected), default=0)
        for scope, day, found in totals.values():
            beyond = any(amount >= 1 << 64 for amount in expected[scope, day])
            # Each flush looks at one shard, so what came with a new day rests after all of them.
            assert isinstance(found, tuple) or (day < newest - 1 and not beyond)
    kept = {place: cell for place, cell in recount(seen).items() if place[1] >= oldest_day}
    assert totals.drop_before(oldest_day) == len(recount(seen)) - len(kept)
    assert cells_of(totals) == kept
    assert len(totals) == len(kept)


def event(day: int, user: str) -> PricedEvent:
    return PricedEvent("e", day * DAY_US, "p", "acme", "m", user_id=user, cost_nano=5)


def test_no_shard_waits_for_ever_where_days_are_short() -> None:
    totals = SourceTotals()
    for day in range(30):
        totals.add([event(day, f"u{number}") for number in range(300)])
        for _ in range(100):
            totals.take_changed()
    awake = [day for _, day, found in totals.values() if isinstance(found, tuple)]
    # A round of all shards takes two and a half of these days.
    assert min(awake) >= 24


def test_all_but_two_days_rest() -> None:
    totals = SourceTotals()
    totals.add([event(day, user) for day in range(6) for user in ("a", "b")])
    assert {type(found) for _, _, found in totals.values()} == {tuple}
    for _ in range(SHARDS + 2):
        totals.take_changed()
    awake = {day for _, day, found in totals.values() if isinstance(found, tuple)}
    at_rest = {day for _, day, found in totals.values() if isinstance(found, bytes)}
    assert (awake, at_rest) == ({4, 5}, {0, 1, 2, 3})
    totals.add([event(1, "a")])  # late
    woken = {(s, d) for s, d, found in totals.values() if d < 4 and isinstance(found, tuple)}
    assert woken == {("all", 1), ("port:p", 1), ("user:a", 1)}
    assert [cell.requests for cell in totals.take_changed() if cell.scope == "all"] == [3]


amounts = st.integers(-(2**70), 2**70) | st.integers(-300, 300)


@given(st.tuples(*[amounts] * 6))
@example((1, 2, 2**64, 2**64, 0, 0))
@example((1, 2, 2**63, -1, 0, 0))
def test_totals_wake_as_they_went_to_rest(totals: Totals) -> None:
    at_rest = packed(totals)
    if at_rest is None:
        assert max(map(abs, totals)) >= 1 << 62
    else:
        assert unpacked(at_rest) == totals


@given(streams)
def test_every_cell_is_in_the_shard_of_its_scope(stream: list[PricedEvent]) -> None:
    totals = SourceTotals()
    totals.add(stream)
    for number in range(SHARDS):
        assert all(shard_of(scope) == number for scope, _, _ in totals.shard(number))


@given(streams, streams)
def test_recovered_cells_go_on(first: list[PricedEvent], then: list[PricedEvent]) -> None:
    recovered = SourceTotals()
    for (scope, day), amounts in recount(first).items():
        recovered.put(scope, day, (0, 0, 0, 0, 0, 0))
        recovered.put(scope, day, amounts)
    assert recovered.take_changed() == []
    recovered.add(then)
    assert cells_of(recovered) == recount(first + then)


@given(streams, st.integers(-4, 4))
def test_old_days_are_forgotten(stream: list[PricedEvent], oldest_day: int) -> None:
    totals = SourceTotals()
    totals.add(stream)
    kept = {place: cell for place, cell in recount(stream).items() if place[1] >= oldest_day}
    assert totals.drop_before(oldest_day) == len(recount(stream)) - len(kept)
    assert cells_of(totals) == kept
    assert len(totals) == len(kept)
