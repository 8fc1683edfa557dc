"""Compressed data read piece by piece, against the codecs that clients compress with."""

import random
from collections.abc import Callable

import cramjam
import pytest
from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

from pipeline.uncompressed import PIECE_BYTES, pieces, uncompressed

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
Compress = Callable[[bytes], bytes]


def raw_snappy(data: bytes) -> bytes:
    """As librdkafka writes it, without the blocks of the Java client."""
    return bytes(codec.snappy_encode(data, xerial_compatible=False))


CODECS = [
    (0, bytes),
    (GZIP, codec.gzip_encode),
    (SNAPPY, codec.snappy_encode),
    (SNAPPY, raw_snappy),
    (LZ4, codec.lz4_encode),
    (ZSTD, codec.zstd_encode),
]
CHANCE = random.Random(1)
CONTENTS = [
    b"",
    b"x",
    CHANCE.randbytes(1_000),
    CHANCE.randbytes(300_000) + bytes(3 * PIECE_BYTES),
    b'{"port_id":"a"}' * 50_000,
]


@pytest.mark.parametrize(("kind", "compress"), CODECS)
@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_all_of_it_or_nothing(kind: int, compress: Compress, content: bytes) -> None:
    data = bytes(compress(content))
    assert uncompressed(kind, data, len(content)) == content
    if content:
        assert uncompressed(kind, data, len(content) - 1) is None


@pytest.mark.parametrize(("kind", "compress"), CODECS[1:])
def test_no_more_than_a_piece_at_once(kind: int, compress: Compress) -> None:
    size_bytes = 64 * 1024 * 1024
    data = bytes(compress(bytes(size_bytes)))
    most_bytes = 32 * len(data) if compress is raw_snappy else PIECE_BYTES
    found = 0
    for piece in pieces(kind, data):
        assert 0 < len(piece) <= most_bytes
        found += len(piece)
    assert found == size_bytes


@pytest.mark.parametrize(("kind", "compress"), [c for c in CODECS if c[0] in (GZIP, LZ4, ZSTD)])
def test_frames_behind_each_other(kind: int, compress: Compress) -> None:
    first, second = CONTENTS[2:4]
    data = bytes(compress(first)) + bytes(compress(second))
    assert uncompressed(kind, data, 1 << 30) == first + second


@pytest.mark.parametrize(("kind", "compress"), CODECS[1:])
def test_what_ends_early_is_not_taken_for_the_whole(kind: int, compress: Compress) -> None:
    content = CONTENTS[3]
    data = bytes(compress(content))
    for end in (1, 20, len(data) // 2, len(data) - 1):
        try:
            found = uncompressed(kind, data[:end], len(content))
        except CorruptRecordException:
            continue
        # A zstd stream may end between blocks; then there is less, and the records are cut off.
        assert found is not None
        assert kind == ZSTD
        assert content.startswith(found)
        assert len(found) < len(content)


@pytest.mark.parametrize("kind", [GZIP, SNAPPY, LZ4, ZSTD])
def test_noise_is_corrupt(kind: int) -> None:
    with pytest.raises(CorruptRecordException, match=f"^.*compression {kind}: "):
        uncompressed(kind, CHANCE.randbytes(500), 1 << 20)


def test_a_block_that_claims_gigabytes_is_not_believed() -> None:
    claim = b"\xff\xff\xff\xff\x0f" + raw_snappy(b"short")[1:]
    assert cramjam.snappy.decompress_raw_len(claim) == 2**32 - 1
    with pytest.raises(CorruptRecordException, match="more than it can"):
        uncompressed(SNAPPY, claim, 1 << 40)


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(UnsupportedCodecError, match="unknown compression 7"):
        uncompressed(7, b"", 1)
