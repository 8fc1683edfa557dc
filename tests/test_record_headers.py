"""Header names of any bytes, read and written as they are; what cannot be read is named."""

from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from pipeline.core.errors import CorruptRecord
from pipeline.fetched_records import install
from pipeline.record_headers import RawNamesBatch, has_raw_names

TP = TopicPartition("usage.events", 3)
ODD = b"\xff\xfe name".decode("utf-8", "surrogateescape")
GZIP = 1
READ_COMMITTED = 1


def batch(
    records: Iterable[tuple[bytes, list[tuple[str, bytes | None]]]],
    base_offset: int,
    builder: Any = RawNamesBatch,
    compression: int = 0,
    producer_id: int | None = None,
    key: bytes = b"k",
) -> bytes:
    """One batch as a broker stores it; with ``producer_id`` a transactional one."""
    made = builder(1 << 20, compression, is_transactional=producer_id is not None)
    for value, headers in records:
        assert made.append(timestamp=1_000, key=key, value=value, headers=headers) is not None
    if producer_id is not None:
        made._set_producer_state(producer_id, 0, 0)
    made.close()
    return base_offset.to_bytes(8, "big") + bytes(made._build())[8:]


def decoded(data: bytes, start: int = 0, aborted: Iterable[tuple[int, int]] = ()) -> Any:
    install()
    fetched: Any = fetcher
    records = fetched.MemoryRecords(data)
    return fetched.PartitionRecords(
        TP, records, list(aborted), start, None, None, True, READ_COMMITTED
    )


@pytest.mark.parametrize("compression", [0, GZIP])
def test_odd_names_are_read_and_written_as_they_are(compression: int) -> None:
    plain = [(b"0", []), (b"1", [("naïve", b"x")])]
    odd = [(b"2", [("a", None)]), (b"3", [(ODD, b"\x00"), ("b", b"")]), (b"4", [])]
    data = batch(plain, 0, BatchBuilder) + batch(odd, 10, compression=compression)
    data += batch([(b"5", [])], 20, BatchBuilder)
    found = [(r.offset, r.value, list(r.headers)) for r in decoded(data)]
    assert found == [
        (0, b"0", []),
        (1, b"1", [("naïve", b"x")]),
        (10, b"2", [("a", None)]),
        (11, b"3", [(ODD, b"\x00"), ("b", b"")]),
        (12, b"4", []),
        (20, b"5", []),
    ]


def test_reading_starts_in_the_middle_of_a_batch() -> None:
    data = batch([(b"%d" % n, [(ODD, b"")]) for n in range(5)], 0)
    assert [r.offset for r in decoded(data, 3)] == [3, 4]


def test_aborted_transactions_stay_invisible_when_decoding_begins_again() -> None:
    data = batch([(b"gone", [])], 0, producer_id=7) + batch([(b"kept", [(ODD, b"")])], 1)
    assert [r.value for r in decoded(data, aborted=[(7, 0)])] == [b"kept"]


def abort_marker(offset: int, producer_id: int) -> bytes:
    """What a broker writes where a transaction has ended without its records."""
    abort = bytes(4)
    marker = bytearray(batch([(b"", [])], offset, BatchBuilder, 0, producer_id, abort))
    marker[22] |= 0x20
    marker[17:21] = calc_crc32c(bytes(marker[21:])).to_bytes(4, "big")
    return bytes(marker)


def test_markers_end_transactions_when_decoding_begins_again() -> None:
    odd = batch([(b"odd", [(ODD, b"")])], 0)
    gone = batch([(b"gone", [])], 1, producer_id=7)
    kept = batch([(b"kept", [])], 3, producer_id=7)
    records = decoded(odd + gone + abort_marker(2, 7) + kept, aborted=[(7, 1)])
    assert [r.value for r in records] == [b"odd", b"kept"]


def test_a_batch_that_ends_early_waits_for_the_next_fetch() -> None:
    whole = batch([(b"0", [(ODD, b"")])], 0)
    records = decoded(whole + whole[:40])
    assert [r.offset for r in records] == [0]
    assert records.next_fetch_offset == 1


@pytest.mark.parametrize("position", [-1, 30])
def test_a_damaged_batch_is_named(position: int) -> None:
    data = bytearray(batch([(b"0", [])], 0) + batch([(b"1", [])], 1))
    data[position] ^= 0xFF
    with pytest.raises(CorruptRecord, match=r"^usage.events partition 3 offset [01]: "):
        list(decoded(bytes(data)))


def test_which_names_need_a_batch_of_their_own() -> None:
    assert has_raw_names([("a", b""), (ODD, None)])
    assert not has_raw_names([("a", b"\xff"), ("naïve", None), ("😀", b"")])
