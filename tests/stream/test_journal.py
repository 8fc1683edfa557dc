"""The journals under any sequence of flushes, compactions and restarts."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.cells import Totals
from pipeline.core.dedupe import DedupeWindow, encode_ids, event_key
from pipeline.core.errors import CorruptRecord
from pipeline.core.events import PricedEvent
from pipeline.core.totals import SHARDS, SourceTotals
from pipeline.stream import id_journal, journal
from pipeline.stream.id_journal import IdJournal, IdJournalReader
from pipeline.stream.journal import Journal, JournalReader, Position, shard_record

NAME = "tallyport.totals partition 3"
DAY_US = 86_400_000_000
HORIZON_MS = 1_000_000
Log = list[tuple[int, bytes, bytes | None]]


def compacted(log: Log, keeps: Iterable[bool]) -> Log:
    """The log after a pass of the cleaner that looked at the records with True only."""
    last = {key: offset for offset, key, _ in log}
    flags = [*keeps, *[False] * len(log)]
    return [
        record
        for record, looked in zip(log, flags, strict=False)
        if not looked or last[record[1]] == record[0]
    ]


class Table:
    """A table with its journal, as a price stage keeps it, and the log that it writes to."""

    def __init__(self) -> None:
        self.log: Log = []
        self.offset = 0
        self.totals, self.journal, self.position = SourceTotals(), Journal(), Position()

    def flush(self, users: Iterable[tuple[int, int, int]]) -> None:
        for user, day, cost_nano in users:
            event = PricedEvent("e", day * DAY_US, "p", "a", "m", input_tokens=1)
            event.user_id, event.cost_nano = str(user), cost_nano
            self.totals.add([event])
        changed: list[Any] = [(c.scope, c.day, c.totals()) for c in self.totals.take_changed()]
        self.position = msgspec.structs.replace(
            self.position,
            epoch=1,
            flush=self.position.flush + 1,
            next_offset=self.position.next_offset + 1,
            cells=len(self.totals),
        )
        for key, value in self.journal.records(self.position, changed, self.totals):
            self.log.append((self.offset, key, value))
            self.offset += 1

    def restart(self) -> None:
        before, position = cells_of(self.totals), self.position
        self.totals, self.journal = SourceTotals(), Journal()
        self.position = reader_of(self.log).restore(self.totals, self.journal)
        assert cells_of(self.totals) == before
        assert self.position == position

    def live_keys(self) -> int:
        return len({key for _, key, _ in self.log})


def cells_of(totals: SourceTotals) -> dict[tuple[str, int], Totals]:
    return {(scope, day): amounts for scope, day, amounts in totals.cells()}


def reader_of(log: Log) -> JournalReader:
    reader = JournalReader(NAME)
    for offset, key, value in log:
        reader.feed(key, value, offset)
    return reader


flushes = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 2**70)))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("flush"), flushes),
        st.tuples(st.just("compact"), st.lists(st.booleans())),
        st.tuples(st.just("compact"), st.just([True] * 10_000)),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(steps)
def test_what_is_restored_is_what_was_written(steps: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # So cheap that the ring turns round within a few flushes.
        patch.setattr(journal, "SHARD_FLOOR_BYTES", 1)
        go_through(steps)


def go_through(steps: list[Any]) -> None:
    table = Table()
    for name, argument in steps:
        if name == "flush":
            table.flush(argument)
        elif name == "compact":
            table.log = compacted(table.log, argument)
        else:
            table.restart()
    table.log = compacted(table.log, [True] * len(table.log))
    table.restart()
    table.flush([(1, 1, 1)])
    table.restart()


@pytest.mark.parametrize("flushes_per_run", [10_000, 7])
def test_live_keys_are_bounded(flushes_per_run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SHARD_FLOOR_BYTES", 40)
    table = Table()
    counts: list[int] = []
    for number in range(1, 3_001):
        table.flush([(number % 20, 1, 5)])
        if number % flushes_per_run == 0:
            table.restart()
        if number % 750 == 0:
            table.log = compacted(table.log, [True] * len(table.log))
            counts.append(table.live_keys())
    assert counts[-1] == counts[-2] < 4 * SHARDS


def journal_of_three() -> Table:
    table = Table()
    for number in range(3):
        table.flush([(number, 1, 2**65)])
    return table


def test_amounts_beyond_64_bits() -> None:
    table = journal_of_three()
    table.restart()
    assert cells_of(table.totals)["all", 1][2] == 3 * 2**65


numbers = st.sampled_from([0, 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
cell_values = st.tuples(
    st.sampled_from(["all", "user:a"]), st.integers(-1, 3), st.tuples(*[numbers] * 6)
)


@given(st.lists(cell_values, max_size=4))
def test_a_number_is_text_exactly_where_it_does_not_fit(cells: list[Any]) -> None:
    _, value = shard_record(3, 1, 2, cells)
    for (_, _, found), (_, _, totals) in zip(msgspec.msgpack.decode(value)[3], cells, strict=True):
        assert found == [n if -(2**63) <= n < 2**64 else str(n) for n in totals]


def test_a_missing_delta_is_noticed() -> None:
    table = journal_of_three()
    table.log = [record for record in table.log if record[1] != b"d|1"]
    with pytest.raises(CorruptRecord, match=f"{NAME} offset 2: flush 2 is missing"):
        reader_of(table.log).restore(SourceTotals())


def test_a_missing_last_delta_is_an_earlier_table() -> None:
    table = journal_of_three()
    totals = SourceTotals()
    assert reader_of(table.log[:-1]).restore(totals).flush == 2
    assert cells_of(totals)["all", 1][0] == 2


def test_missing_cells_are_noticed() -> None:
    table = journal_of_three()
    key, value = table.log[-1][1:]
    delta = msgspec.msgpack.decode(value or b"")
    delta[1][10] += 1
    table.log.append((9, key, msgspec.msgpack.encode(delta)))
    with pytest.raises(
        CorruptRecord, match=f"{NAME} offset 9: recovered 5 cells where flush 3 states 6"
    ):
        reader_of(table.log).restore(SourceTotals())


def test_shards_alone_are_no_table() -> None:
    reader = JournalReader(NAME)
    reader.feed(b"s|0", msgspec.msgpack.encode([1, 1, 1, []]), 0)
    with pytest.raises(CorruptRecord, match=f"{NAME} offset 0: shards without any delta"):
        reader.restore(SourceTotals())


def restore_beside_another(key: bytes | None, value: bytes | None) -> None:
    reader = JournalReader(NAME)
    reader.feed(b"d|1", STANDING, 16)
    reader.feed(key, value, 17)
    reader.restore(SourceTotals())


STANDING = msgspec.msgpack.encode([1, [1, 1, 1], []])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"d|0", b"\xc1"),
        (b"d|0", b""),
        (b"d|0", None),
        (b"d|0", msgspec.msgpack.encode([1, [], [], 5])[:-1]),
        (b"d|0", msgspec.msgpack.encode([2, [], []])),
        (b"d|0", msgspec.msgpack.encode([2, "what comes next"])),
        (b"d|0", msgspec.msgpack.encode([1, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1], [["a", 1, [1]]]])),
        (b"s|0", msgspec.msgpack.encode([7, 1, 1, []])),
        (b"s|0", msgspec.msgpack.encode([1, 1, 1, [["a", 1, "x"]]])),
        (b"s|0", msgspec.msgpack.encode([1, 1, 1, [["a", 1, [1, 2, 3, 4, 5, "x"]]]])),
        (b"s|256", msgspec.msgpack.encode([1, 1, 1, []])),
        (b"s|-1", msgspec.msgpack.encode([1, 1, 1, []])),
        (b"x|0", b""),
        (b"d|", b""),
        (b"", b""),
        (None, None),
    ],
)
def test_a_corrupt_record_is_named(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(CorruptRecord, match=f"{NAME} offset 17") as raised:
        restore_beside_another(key, value)
    if value is not None and value[:2] == b"\x92\x02":
        assert "version 2; this release reads 1" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"next_offset": 1}, "flush 3 has next_offset 1 after 2 in flush 2"),
        ({"watermark_ms": -1}, "flush 3 has watermark_ms -1 after 0 in flush 2"),
        ({"epoch": 2}, "flush 3 has epoch 2 after 1 in flush 2"),
        ({"flush": 2}, "flush 3 is missing"),
        ({"flush": 5}, "flush 3 is missing"),
    ],
)
def test_an_impossible_stamp_is_named(changes: dict[str, int], problem: str) -> None:
    table = journal_of_three()
    key, value = next(record[1:] for record in reversed(table.log) if record[1] == b"d|2")
    delta = msgspec.msgpack.decode(value or b"")
    for name, number in changes.items():
        delta[1][Position.__struct_fields__.index(name)] = number
    table.log.append((17, key, msgspec.msgpack.encode(delta)))
    with pytest.raises(CorruptRecord, match=f"{NAME} offset 17: .*{problem}"):
        reader_of(table.log).restore(SourceTotals())


@pytest.mark.parametrize(("epoch", "flush"), [(1, 4), (2, 3), (0, 1)])
def test_a_shard_that_does_not_fit_the_last_delta_is_named(epoch: int, flush: int) -> None:
    table = journal_of_three()
    table.log.append((17, b"s|7", msgspec.msgpack.encode([1, epoch, flush, []])))
    with pytest.raises(CorruptRecord, match=f"{NAME} offset 17: a shard of epoch {epoch}"):
        reader_of(table.log).restore(SourceTotals())


class Ids:
    """An id journal, the log that it writes to, and what it must remember."""

    def __init__(self) -> None:
        self.journal = IdJournal()
        self.log: Log = []
        self.offset = self.number = 0
        self.now_ms = HORIZON_MS
        self.remembered: dict[bytes, int] = {}

    def flush(self, count: int, passed_ms: int) -> None:
        self.now_ms += passed_ms
        keys = [event_key("p", str(self.number + n)) for n in range(count)]
        self.number += count
        self.remembered |= dict.fromkeys(keys, self.now_ms)
        times_ms = [self.now_ms] * count
        for key, value in self.journal.records(
            encode_ids(keys, times_ms), self.now_ms - HORIZON_MS
        ):
            self.log.append((self.offset, key, value))
            self.offset += 1

    def restart(self) -> None:
        window = DedupeWindow(HORIZON_MS)
        self.journal = self.restored(window)
        recent = [k for k, ms in self.remembered.items() if ms >= self.now_ms - HORIZON_MS]
        assert window.admit(recent, [self.now_ms] * len(recent)) == [False] * len(recent)
        fresh = [event_key("q", str(n)) for n in range(5)]
        assert window.admit(fresh, [self.now_ms] * 5) == [True] * 5

    def restored(self, window: DedupeWindow) -> IdJournal:
        reader = IdJournalReader(NAME, window, self.now_ms - HORIZON_MS)
        for offset, key, value in self.log:
            reader.feed(key, value, offset)
        return reader.restore(self.number)


id_steps = st.lists(
    st.one_of(
        st.tuples(st.just("flush"), st.integers(0, 6), st.integers(0, HORIZON_MS // 3)),
        st.tuples(st.just("compact"), st.lists(st.booleans()), st.none()),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def small_ring() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_journal, "RING_SLOTS", 4)
        patch.setattr(id_journal, "SEGMENT_BYTES", 24 * 9)
        yield


@settings(deadline=None, max_examples=150)
@given(id_steps)
def test_ids_survive(small_ring: None, steps: list[Any]) -> None:
    ids = Ids()
    for name, first, second in steps:
        if name == "flush":
            ids.flush(first, second)
        elif name == "compact":
            ids.log = compacted(ids.log, first)
        else:
            ids.restart()
    ids.log = compacted(ids.log, [True] * len(ids.log))
    ids.restart()


@pytest.mark.usefixtures("small_ring")
def test_live_id_keys_are_bounded() -> None:
    ids = Ids()
    counts: list[int] = []
    for number in range(1, 601):
        ids.flush(3, HORIZON_MS // 30)
        if number % 50 == 0:
            ids.restart()
            ids.log = compacted(ids.log, [True] * len(ids.log))
            counts.append(sum(value is not None for _, _, value in ids.log))
    assert max(counts[2:]) <= max(counts[:2]) + 2


HEADER = b"\x02" + bytes(16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"d|0", b""),
        (b"d|0", None),
        (b"d|0", HEADER[:-1]),
        (b"d|0", HEADER + bytes(23)),
        (b"g|0", b"\x02" + bytes(8) + b"\xff" * 8),
        (b"g|0", b"\x03" + bytes(16)),
        (b"g|0", b"\x01" + bytes(8)),
        (b"x|0", HEADER),
        (b"d|-1", HEADER),
        (None, None),
    ],
)
def test_a_corrupt_id_record_is_named(key: bytes | None, value: bytes | None) -> None:
    reader = IdJournalReader(NAME, DedupeWindow(HORIZON_MS))
    with pytest.raises(CorruptRecord, match=f"{NAME} offset 17") as raised:
        reader.feed(key, value, 17)
    if value is not None and value[:1] in (b"\x01", b"\x03"):
        assert f"version {value[0]}; this release reads 2" in str(raised.value)


@pytest.fixture
def ids_of_eight(small_ring: None) -> Ids:
    """Two segments of 9 ids and two deltas of 3, with a slot left over from before."""
    ids = Ids()
    for _ in range(8):
        ids.flush(3, 1)
    assert [key for _, key, _ in ids.log if key.startswith(b"g")] == [b"g|0", b"g|1"]
    ids.log = compacted(ids.log, [True] * len(ids.log))
    return ids


@pytest.mark.parametrize(
    ("lost", "problem"),
    [
        (b"g|0", None),  # as if it had been forgotten
        (b"g|1", "starts at id 18, but the record before it, at offset 3, ends at 9"),
        (b"d|0", "starts at id 21, but the record before it, at offset 7, ends at 18"),
        (b"d|1", "ends at id 21, but the totals count 24"),
    ],
)
def test_ids_that_are_missing_are_noticed(
    ids_of_eight: Ids, lost: bytes, problem: str | None
) -> None:
    ids_of_eight.log = [record for record in ids_of_eight.log if record[1] != lost]
    if problem is None:
        assert ids_of_eight.restored(DedupeWindow(HORIZON_MS)).count == 24
        return
    with pytest.raises(CorruptRecord, match=rf"{NAME} offset \d+: .*{problem}"):
        ids_of_eight.restored(DedupeWindow(HORIZON_MS))


def test_a_missing_segment_between_others_is_noticed(ids_of_eight: Ids) -> None:
    for _ in range(4):
        ids_of_eight.flush(3, 1)
    ids_of_eight.log = [record for record in ids_of_eight.log if record[1] != b"g|1"]
    with pytest.raises(CorruptRecord, match="segment 1 is missing"):
        ids_of_eight.restored(DedupeWindow(HORIZON_MS))


@pytest.mark.parametrize("count", [23, 25, 0])
def test_totals_and_ids_that_do_not_agree_are_noticed(ids_of_eight: Ids, count: int) -> None:
    ids_of_eight.number = count
    with pytest.raises(CorruptRecord, match=f"ends at id 24, but the totals count {count}"):
        ids_of_eight.restored(DedupeWindow(HORIZON_MS))
