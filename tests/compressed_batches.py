"""Record batches that a broker takes and that come to far more than they are, built piece by piece.

Message format 2: https://kafka.apache.org/documentation/#recordbatch.
"""

import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import zstandard
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c

ZSTD = 4
MAX_REQUEST_BYTES = 8 * 1024 * 1024
PIECE = b" " * (1 << 20)


class Blanks(int):
    """A part of a record of so many blanks."""


Part = bytes | Blanks | None


class Given(NamedTuple):
    """A record to build."""

    key: Part = None
    value: Part = None
    headers: tuple[tuple[bytes, Part], ...] = ()


def varint(value: int) -> bytes:
    left, found = (value << 1) ^ (value >> 63), bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


def size_of(part: Part) -> int:
    return -1 if part is None else int(part) if isinstance(part, Blanks) else len(part)


def parts_of(number: int, record: Given) -> list[Part]:
    """What a record is made of, without its length."""
    found: list[Part] = [b"\x00", varint(0), varint(number)]
    for part in (record.key, record.value):
        found += [varint(size_of(part)), part]
    found.append(varint(len(record.headers)))
    for name, part in record.headers:
        found += [varint(len(name)), name, varint(size_of(part)), part]
    return found


def pieces_of(records: Iterable[Given]) -> Iterator[bytes]:
    for number, record in enumerate(records):
        parts = parts_of(number, record)
        yield varint(sum(max(size_of(part), 0) for part in parts))
        for part in parts:
            left = max(size_of(part), 0)
            if isinstance(part, bytes):
                yield part
                continue
            while left:
                yield PIECE[:left]
                left -= len(PIECE[:left])


def zstd_batch(records: list[Given], time_ms: int) -> bytes:
    """A batch of ``records`` at offset 0, compressed by zstd."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    data = b"".join([*map(compressor.compress, pieces_of(records)), compressor.flush()])
    last = len(records) - 1
    summed = struct.pack(">hiqqqhii", ZSTD, last, time_ms, time_ms, -1, -1, -1, len(records)) + data
    return struct.pack(">qiibI", 0, 4 + 1 + 4 + len(summed), -1, 2, calc_crc32c(summed)) + summed


async def send_zstd(
    client: Mapping[str, Any], topic: str, partition: int, records: list[Given]
) -> None:
    """Sends ``records`` as one batch of now."""
    data = zstd_batch(records, time.time_ns() // 1_000_000)
    async with AIOKafkaProducer(**client, max_request_size=MAX_REQUEST_BYTES) as producer:
        batch = _PreparedBatch(data, len(records))
        await (await producer.send_batch(batch, topic, partition=partition))


class _PreparedBatch(BatchBuilder):
    """A batch that is there already, of a producer without idempotence."""

    def __init__(self, data: bytes, count: int) -> None:
        super().__init__(1 << 20, 0, is_transactional=False)
        self._data = data
        self._relative_offset = count
        self.close()

    def _set_producer_state(self, *_: Any) -> None:
        pass

    def _build(self) -> Any:
        self._buffer = bytearray(self._data)
        return self._buffer
