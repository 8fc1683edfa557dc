"""The fold of events into day cells: the same whatever the stream is cut into."""

from collections import defaultdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.events import Event
from pipeline.core.totals import DAY_US, SHARDS, SourceTotals, Totals, shard_of, sum_totals

Priced = tuple[Event, int | None]

ids = st.sampled_from(["", "a", "b", "*", "all", "org:a"])
events = st.builds(
    Event,
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
)
streams = st.lists(st.tuples(events, st.none() | st.integers(0, 2**70)), max_size=40)


def recount(stream: list[Priced]) -> dict[tuple[str, int], Totals]:
    """The definition, as plainly as it can be put."""
    cells: dict[tuple[str, int], list[Totals]] = defaultdict(list)
    for event, cost_nano in stream:
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
    return {(cell.scope, cell.day): cell.totals() for cell in totals.cells()}


@given(streams, st.lists(st.integers(0, 40)))
def test_the_fold_is_the_same_in_any_cut(stream: list[Priced], cuts: list[int]) -> None:
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


@given(streams)
def test_every_cell_is_in_the_shard_of_its_scope(stream: list[Priced]) -> None:
    totals = SourceTotals()
    totals.add(stream)
    for number in range(SHARDS):
        assert all(shard_of(cell.scope) == number for cell in totals.shard(number))


@given(streams, streams)
def test_recovered_cells_go_on(first: list[Priced], then: list[Priced]) -> None:
    recovered = SourceTotals()
    for (scope, day), amounts in recount(first).items():
        recovered.put(scope, day, (0, 0, 0, 0, 0, 0))
        recovered.put(scope, day, amounts)
    assert recovered.take_changed() == []
    recovered.add(then)
    assert cells_of(recovered) == recount(first + then)


@given(streams, st.integers(-4, 4))
def test_old_days_are_forgotten(stream: list[Priced], oldest_day: int) -> None:
    totals = SourceTotals()
    totals.add(stream)
    kept = {place: cell for place, cell in recount(stream).items() if place[1] >= oldest_day}
    assert totals.drop_before(oldest_day) == len(recount(stream)) - len(kept)
    assert cells_of(totals) == kept
    assert len(totals) == len(kept)
