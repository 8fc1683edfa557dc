"""Which blocks the sink takes, skips, reads again or refuses."""

import pytest

from pipeline.core.errors import CorruptRecord, Refused
from pipeline.ledger.intake import Intake, Verdict, first_offset_to_read
from pipeline.ledger.manifests import Position
from tests.ledger.priced_blocks import block, row

TOPIC = "usage.events"


def intake(**values: object) -> Intake:
    known: dict[str, object] = {"priced_next_offset": 0, "positions": {}}
    return Intake("usage.priced", 0, **{**known, **values})  # type: ignore[arg-type]


def rows(first: int, end: int) -> list[tuple]:
    return [row(event_id=f"e{n}", source_offset=n) for n in range(first, end)]


def test_takes_blocks_that_join_and_skips_what_it_has() -> None:
    it = intake()
    assert it.offer(block(rows(0, 3), 0, 3), 0, 10) is Verdict.TAKE
    assert it.offer(block(rows(3, 5), 3, 6), 2, 10) is Verdict.TAKE
    assert it.offer(block(rows(3, 5), 3, 6), 2, 10) is Verdict.KNOWN
    assert it.offer(block(rows(3, 5), 3, 6), 4, 10) is Verdict.KNOWN
    assert (it.taken_rows, it.taken_bytes, it.priced_next_offset) == (5, 20, 5)
    assert [b.first_offset for b in it.take_all()] == [0, 3]
    assert (it.taken, it.taken_rows, it.taken_bytes) == ([], 0, 0)


def test_goes_on_where_the_ledger_ends() -> None:
    it = intake(positions={TOPIC: Position(1, 10, 7)}, priced_next_offset=7)
    assert it.offer(block([], 5, 10), 7, 1) is Verdict.KNOWN
    assert it.offer(block([], 10, 12), 8, 1) is Verdict.TAKE
    assert it.positions[TOPIC] == Position(1, 12, 9)


def test_a_gap_is_read_again_once_and_then_refused() -> None:
    it = intake(positions={TOPIC: Position(1, 10, 7)}, priced_next_offset=7)
    assert it.offer(block([], 12, 13), 8, 1) is Verdict.GAP
    assert it.priced_next_offset == 7
    with pytest.raises(Refused) as refused:
        it.offer(block([], 12, 13), 8, 1)
    for named in ("usage.priced partition 0 offset 8", "usage.events partition 0 offset 12", "10"):
        assert named in str(refused.value)


def test_a_gap_that_the_second_read_fills_is_forgotten() -> None:
    it = intake(positions={TOPIC: Position(1, 10, 7)}, priced_next_offset=7)
    assert it.offer(block([], 12, 13), 8, 1) is Verdict.GAP
    assert it.offer(block([], 10, 12), 7, 1) is Verdict.TAKE
    assert it.offer(block([], 12, 13), 8, 1) is Verdict.TAKE


def test_deleted_blocks_are_named_as_the_reason() -> None:
    it = intake(positions={TOPIC: Position(1, 10, 7)}, priced_next_offset=20, lost_before=20)
    assert it.offer(block([], 12, 13), 20, 1) is Verdict.GAP
    with pytest.raises(Refused, match="now starts at offset 20"):
        it.offer(block([], 12, 13), 20, 1)


def test_deleted_blocks_before_the_first_one_are_refused_too() -> None:
    it = intake(priced_next_offset=20, lost_before=20)
    with pytest.raises(Refused, match="now starts at offset 20"):
        it.offer(block([], 12, 13), 20, 1)


def test_an_older_log_is_refused_and_a_newer_one_starts_afresh() -> None:
    it = intake(positions={TOPIC: Position(2, 10, 7)})
    with pytest.raises(Refused, match="epoch 1"):
        it.offer(block([], 0, 5, epoch=1), 0, 1)
    assert it.offer(block([], 0, 5, epoch=3), 0, 1) is Verdict.TAKE
    assert it.positions[TOPIC] == Position(3, 5, 1)


@pytest.mark.parametrize(
    "bad",
    [
        block([], 0, 1, partition=1),
        block([], 5, 4),
        block(rows(0, 3), 0, 2),
        block([], 8, 12),
    ],
    ids=["other partition", "backwards", "too many rows", "overlap"],
)
def test_a_block_that_contradicts_itself_or_the_ledger_is_corrupt(bad: object) -> None:
    it = intake(positions={TOPIC: Position(1, 10, 0)})
    with pytest.raises(CorruptRecord, match=r"usage\.priced partition 0 offset 0"):
        it.offer(bad, 0, 1)  # type: ignore[arg-type]


def test_rows_already_in_the_ledger_are_left_out() -> None:
    it = intake(known={TOPIC: frozenset({1, 2})})
    whole = block(rows(0, 4), 0, 4, rejected=[])
    left = it.without_known_rows(whole)
    assert [r[0] for r in left.rows] == ["e0", "e3"]
    assert (left.first_offset, left.next_offset) == (0, 4)
    assert len(whole.rows) == 4


@pytest.mark.parametrize(
    ("positions", "epoch", "first", "end", "expected"),
    [
        ({}, 1, 0, 9, (0, None)),
        ({}, 1, 3, 9, (3, 3)),
        ({"a": Position(1, 5, 6), "b": Position(1, 1, 4)}, 1, 0, 9, (6, None)),
        ({"a": Position(1, 5, 6), "b": Position(2, 1, 4)}, None, 0, 9, (4, None)),
        ({"a": Position(1, 5, 6)}, 2, 0, 3, (0, None)),
        ({"a": Position(1, 5, 6)}, 1, 8, 9, (8, 8)),
    ],
)
def test_where_reading_begins(
    positions: dict[str, Position],
    epoch: int | None,
    first: int,
    end: int,
    expected: tuple[int, int | None],
) -> None:
    assert first_offset_to_read("t", positions, epoch, first, end) == expected


def test_a_log_that_ends_before_the_ledger_is_refused() -> None:
    with pytest.raises(Refused, match=r"ends at offset 3.*up to offset 6"):
        first_offset_to_read("t", {"a": Position(1, 5, 6)}, 1, 0, 3)
