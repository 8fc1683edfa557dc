"""The home partition of a port, and the headers of records that stood elsewhere before."""

import re
from functools import lru_cache
from typing import Final

import msgspec

from pipeline.core.cloudevents import Headers

FORWARDED_FROM: Final = "forwarded-from"
REPLAYED_FROM: Final = "replayed-from"

MAX_CARRIED_BYTES: Final = 512 * 1024
"""Of key and headers, so that with the largest event and one header more a record is one that every
broker takes."""
_HEADER_OVERHEAD_BYTES: Final = 16

_MURMUR2_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_WORD: Final = 0xFFFFFFFF
_CACHED_PORTS: Final = 65_536

# Bounds of what Kafka itself can count: i32 partitions, i64 offsets, times up to year 9999.
_PLACE: Final = re.compile(rb"([0-9]{1,10})/([0-9]{1,19})/([0-9]{1,15})")
_MAX_NUMBER: Final = 2**31 - 1
_MAX_OFFSET: Final = 2**63 - 1
_MAX_TIMESTAMP_MS: Final = 253_402_300_799_999


class ForwardedFrom(msgspec.Struct, frozen=True, gc=False):
    """Where a record arrived first: its partition, offset and Kafka timestamp there."""

    partition: int
    offset: int
    timestamp_ms: int


def murmur2(data: bytes) -> int:
    """MurmurHash2 as Kafka's Java client computes it, as an unsigned 32-bit number."""
    length = len(data)
    whole = length & ~3
    digest = _MURMUR2_SEED ^ length
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * _MULTIPLIER & _WORD
        word = (word ^ word >> 24) * _MULTIPLIER & _WORD
        digest = (digest * _MULTIPLIER & _WORD) ^ word
    if whole < length:
        digest = (digest ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _WORD
    digest = (digest ^ digest >> 13) * _MULTIPLIER & _WORD
    return digest ^ digest >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives to ``key``."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


@lru_cache(maxsize=_CACHED_PORTS)
def home_partition(port_id: str, partitions: int) -> int:
    """The partition of ``usage.events`` on which the events of ``port_id`` are counted."""
    return partition_of(port_id.encode(), partitions)


def forwarded_from_header(partition: int, offset: int, timestamp_ms: int) -> tuple[str, bytes]:
    """The header that a forwarded record gets beside its original ones."""
    return FORWARDED_FROM, f"{partition}/{offset}/{timestamp_ms}".encode()


def carried_bytes(key: bytes | None, headers: Headers) -> int:
    """What a forwarded record carries beside its value: at most so many bytes."""
    names = sum(len(name.encode(errors="surrogateescape")) for name, _ in headers)
    values = sum(len(value or b"") for _, value in headers)
    return len(key or b"") + names + values + _HEADER_OVERHEAD_BYTES * len(headers)


def parse_forwarded_from(headers: Headers) -> ForwardedFrom | None:
    """What the last ``forwarded-from`` header says; None without one or when it is unreadable."""
    place = place_in(headers, FORWARDED_FROM)
    return None if place is None else ForwardedFrom(*place)


def judging_time_ms(headers: Headers, timestamp_ms: int) -> int:
    """The Kafka time that judges a record: where it came first, if it was forwarded or replayed."""
    places = (place_in(headers, FORWARDED_FROM), place_in(headers, REPLAYED_FROM))
    # A record cannot have been elsewhere after it came here.
    return min([timestamp_ms, *(place[2] for place in places if place is not None)])


def place_in(headers: Headers, header: str) -> tuple[int, int, int] | None:
    """``NUMBER/OFFSET/TIMESTAMP_MS`` as the last header of that name says it, if it is readable."""
    for name, value in reversed(headers):
        if name == header:
            return _parse(value or b"")
    return None


def _parse(value: bytes) -> tuple[int, int, int] | None:
    match = _PLACE.fullmatch(value)
    if match is None:
        return None
    number, offset, timestamp_ms = map(int, match.groups())
    if number > _MAX_NUMBER or offset > _MAX_OFFSET or timestamp_ms > _MAX_TIMESTAMP_MS:
        return None
    return number, offset, timestamp_ms
