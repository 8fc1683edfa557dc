"""Where records belong, and the headers that say where one stood before."""

import re
from functools import lru_cache
from typing import NamedTuple

from pipeline.audit.recount.envelopes import Headers

_PLACE = re.compile(rb"(\d{1,10})/(\d{1,19})/(\d{1,15})")
_MAX_TIMESTAMP_MS = 253_402_300_799_999
_MAX_CARRIED_BYTES = 524_288
_BYTES_OF_A_HEADER = 16


class Place(NamedTuple):
    """Where a record stood: a number (a partition or an epoch), its offset and Kafka time."""

    number: int
    offset: int
    timestamp_ms: int


@lru_cache(maxsize=65_536)
def home_of(text: str, partitions: int) -> int:
    """murmur2 as Kafka's Java client computes it over UTF-8, modulo the partitions."""
    return (_murmur2(text.encode()) & 0x7FFFFFFF) % partitions


def can_be_forwarded(key: bytes | None, headers: Headers) -> bool:
    """Whether key and headers, each name and content and 16 bytes more, are at most 512 KiB."""
    carried_bytes = len(key or b"")
    for name, content in headers:
        carried_bytes += _BYTES_OF_A_HEADER + len(name.encode("utf-8", "surrogateescape"))
        carried_bytes += len(content or b"")
    return carried_bytes <= _MAX_CARRIED_BYTES


def forwarded_from(headers: Headers) -> Place | None:
    """What the last ``forwarded-from`` header names; None where it cannot be read."""
    return _last_place(headers, "forwarded-from")


def replayed_from(headers: Headers) -> Place | None:
    """What the last ``replayed-from`` header names; None where it cannot be read."""
    return _last_place(headers, "replayed-from")


def restored_from(headers: Headers) -> Place | None:
    """What the last ``restored-from`` header names; None where it cannot be read."""
    return _last_place(headers, "restored-from")


def _last_place(headers: Headers, header: str) -> Place | None:
    contents = [content for name, content in headers if name == header]
    found = _PLACE.fullmatch(contents[-1] or b"") if contents else None
    if found is None:
        return None
    place = Place(*(int(group) for group in found.groups()))
    fits = place.number < 2**31 and place.offset < 2**63
    return place if fits and place.timestamp_ms <= _MAX_TIMESTAMP_MS else None


def _murmur2(data: bytes) -> int:
    words, tail = divmod(len(data), 4)
    h = 0x9747B28C ^ len(data)
    for at in range(words):
        k = int.from_bytes(data[4 * at : 4 * at + 4], "little")
        k = (k * 0x5BD1E995) % 2**32
        k ^= k >> 24
        k = (k * 0x5BD1E995) % 2**32
        h = (h * 0x5BD1E995) % 2**32 ^ k
    if tail:
        h ^= int.from_bytes(data[-tail:], "little")
        h = (h * 0x5BD1E995) % 2**32
    h ^= h >> 13
    h = (h * 0x5BD1E995) % 2**32
    return h ^ (h >> 15)
