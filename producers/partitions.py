"""Which partition a port lives on: murmur2 of its UTF-8 bytes, as the Java client computes it."""

from functools import lru_cache

_SEED = 0x9747B28C
_FACTOR = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash of Kafka's default partitioner, unsigned."""
    length = len(data)
    digest = _SEED ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * _FACTOR & _MASK
        word = (word ^ (word >> 24)) * _FACTOR & _MASK
        digest = (digest * _FACTOR & _MASK) ^ word
    if length > whole:
        digest = (digest ^ int.from_bytes(data[whole:], "little")) * _FACTOR & _MASK
    digest = (digest ^ (digest >> 13)) * _FACTOR & _MASK
    return digest ^ (digest >> 15)


@lru_cache(maxsize=65_536)
def home_partition(key: bytes, partitions: int) -> int:
    """The partition, 0 … ``partitions`` - 1, on which records with ``key`` belong."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
