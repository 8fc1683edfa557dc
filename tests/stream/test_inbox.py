"""The inbox against what a transport may do: drop, repeat, overlap and flood."""

import asyncio

import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP

from pipeline.stream import inbox as inbox_module
from pipeline.stream.inbox import Inbox
from pipeline.stream.journal import Position, delta_record
from pipeline.stream.transport import Slice

PARTITION = TP("usage.events", 0)
LETTER = "\N{GRINNING FACE}"


def record(offset: int, size_bytes: int = 1) -> ConsumerRecord[bytes, bytes]:
    value = b"x" * size_bytes
    return ConsumerRecord("usage.events", 0, offset, 0, 1, b"", value, None, 0, size_bytes, ())


def piece(first: int, after: int, size_bytes: int = 1, reaches: int | None = None) -> Slice:
    records = [record(offset, size_bytes) for offset in range(first, after)]
    return Slice(PARTITION, first, after if reaches is None else reaches, records)


class Seeks(list[int]):
    async def __call__(self, offset: int) -> None:
        self.append(offset)


def taken(inbox: Inbox, limit: int = 1_000) -> list[int]:
    return [one.offset for one in inbox.take(limit)]


async def test_old_slices_are_left_out_and_overlaps_trimmed() -> None:
    seeks = Seeks()
    arrived = asyncio.Event()
    inbox = Inbox(10, seeks, arrived)
    await inbox.offer(piece(0, 10))
    assert (inbox.is_empty, arrived.is_set()) == (True, False)
    await inbox.offer(piece(5, 15))
    await inbox.offer(piece(5, 15))
    await inbox.offer(piece(12, 18))
    assert taken(inbox) == list(range(10, 18))
    assert (inbox.reached, inbox.is_empty, arrived.is_set()) == (18, True, True)
    assert seeks == []


async def test_a_slice_without_records_moves_the_position() -> None:
    inbox = Inbox(0, Seeks(), asyncio.Event())
    await inbox.offer(piece(0, 0, reaches=3))
    assert taken(inbox) == []
    assert inbox.reached == 3
    await inbox.offer(piece(3, 5, reaches=6))
    assert taken(inbox) == [3, 4]
    assert inbox.reached == 6


async def test_a_jump_seeks_back_once_and_nothing_is_lost() -> None:
    seeks = Seeks()
    inbox = Inbox(0, seeks, asyncio.Event())
    await inbox.offer(piece(0, 5))
    for first in (10, 15, 20):
        await inbox.offer(piece(first, first + 5))
    assert seeks == [5]
    assert taken(inbox) == [0, 1, 2, 3, 4]
    await inbox.offer(piece(5, 12))
    assert taken(inbox) == list(range(5, 12))


async def test_a_second_jump_seeks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "RESEEK_S", 0.0)
    seeks = Seeks()
    inbox = Inbox(0, seeks, asyncio.Event())
    await inbox.offer(piece(5, 6))
    await inbox.offer(piece(7, 8))
    assert seeks == [0, 0]


async def test_a_last_slice_that_was_dropped_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "RESEEK_S", 0.0)
    seeks = Seeks()
    inbox = Inbox(0, seeks, asyncio.Event())
    await inbox.offer(piece(0, 5))
    await inbox.look_for_missing(9)
    assert seeks == []
    assert taken(inbox) == [0, 1, 2, 3, 4]
    await inbox.look_for_missing(None)
    await inbox.look_for_missing(5)
    assert seeks == []
    await inbox.look_for_missing(9)
    assert seeks == [5]
    await inbox.offer(piece(5, 9))
    assert taken(inbox) == [5, 6, 7, 8]


async def test_takes_are_bounded_and_join() -> None:
    inbox = Inbox(0, Seeks(), asyncio.Event())
    await inbox.offer(piece(0, 6))
    await inbox.offer(piece(6, 12))
    await inbox.offer(piece(12, 18))
    for first, reached in ((0, 7), (7, 14), (14, 18)):
        assert taken(inbox, 7) == list(range(first, reached))
        assert inbox.reached == reached
        assert len(inbox) == 18 - reached
    assert inbox.is_empty


async def test_a_take_leaves_the_gap_behind_its_last_record_to_the_next() -> None:
    inbox = Inbox(0, Seeks(), asyncio.Event())
    gapped = [record(offset) for offset in (2, 5, 6)]
    await inbox.offer(Slice(PARTITION, 0, 9, gapped))
    assert taken(inbox, 1) == [2]
    assert inbox.reached == 5
    assert taken(inbox, 1) == [5]
    assert taken(inbox, 1) == [6]
    assert inbox.reached == 9


@pytest.mark.parametrize("bound", ["MAX_TAKE_BYTES", "MAX_JOURNAL_BYTES"])
async def test_takes_are_bounded_in_bytes(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, bound, 100)
    inbox = Inbox(0, Seeks(), asyncio.Event())
    await inbox.offer(piece(0, 25, size_bytes=10, reaches=27))
    await inbox.offer(piece(27, 28, size_bytes=1_000))
    await inbox.offer(piece(28, 30, size_bytes=10))
    assert all_taken(inbox) == [
        (list(range(10)), 10),
        (list(range(10, 20)), 20),
        (list(range(20, 25)), 27),
        ([27], 28),
        ([28, 29], 30),
    ]
    assert len(inbox) == 0


async def test_a_journal_has_only_so_much_of_a_large_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox_module, "MAX_CELLS_BYTES", 30)
    monkeypatch.setattr(inbox_module, "MAX_JOURNAL_BYTES", 100)
    inbox = Inbox(0, Seeks(), asyncio.Event())
    await inbox.offer(piece(0, 3, size_bytes=1_000))
    await inbox.offer(piece(3, 5, size_bytes=5))
    await inbox.offer(piece(5, 9, size_bytes=31))
    assert all_taken(inbox) == [([0, 1, 2, 3, 4], 5), ([5, 6, 7], 8), ([8], 9)]


def test_the_longest_ids_are_within_what_a_journal_is_thought_to_have() -> None:
    """Letters of four bytes, and the largest numbers that MessagePack has."""
    scopes = ["all", f"port:{LETTER * 128}"]
    scopes += [f"{kind}:{LETTER * 256}" for kind in ("org", "group", "user")]
    most = 2**64 - 1
    cells = [(scope, 2**31, (most, most, most, most, most, most)) for scope in scopes]
    _, one = delta_record(1, Position(), cells)
    _, none = delta_record(1, Position(), [])
    assert len(one) - len(none) <= inbox_module.MAX_CELLS_BYTES


def all_taken(inbox: Inbox) -> list[tuple[list[int], int]]:
    """Take for take, the offsets and what was reached."""
    runs: list[tuple[list[int], int]] = []
    while not inbox.is_empty:
        runs.append((taken(inbox), inbox.reached))
    return runs


@pytest.mark.parametrize(
    ("bound", "most"), [("MAX_PENDING_RECORDS", 10), ("MAX_PENDING_BYTES", 10)]
)
async def test_who_offers_too_much_waits(
    bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, bound, most)
    inbox = Inbox(0, Seeks(), asyncio.Event())
    await inbox.offer(piece(0, 6))
    await inbox.offer(piece(6, 12))
    late = asyncio.create_task(inbox.offer(piece(12, 18)))
    await asyncio.sleep(0.01)
    assert not late.done()
    assert len(inbox) == 12
    assert taken(inbox, 2) == [0, 1]
    await asyncio.sleep(0.01)
    assert not late.done()
    assert taken(inbox, 1) == [2]
    await asyncio.wait_for(late, 60)
    assert taken(inbox) == list(range(3, 18))


async def test_closing_frees_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "MAX_PENDING_RECORDS", 1)
    inbox = Inbox(0, Seeks(), asyncio.Event())
    await inbox.offer(piece(0, 6))
    late = asyncio.create_task(inbox.offer(piece(6, 12)))
    await asyncio.sleep(0.01)
    inbox.close()
    await asyncio.wait_for(late, 60)
    await asyncio.wait_for(inbox.offer(piece(6, 12)), 60)
    assert taken(inbox) == list(range(6))
