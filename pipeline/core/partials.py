"""Partials: what a source partition tells the merge of each scope.

A partial carries *cumulative* cells, so applying it twice changes nothing, and a stamp
``(flush, part)`` that only grows for a source, so an older one is recognised and left out.
``next_offset`` and ``as_of_ms`` say up to where, and until when, the source was contained.
"""

import msgspec

from pipeline.core.cells import CellValue
from pipeline.core.errors import CorruptRecord
from pipeline.core.record_version import UNREADABLE, unreadable, wrong_version

PARTIAL_VERSION = 1


class Partial(msgspec.Struct, array_like=True, gc=False):
    """One message of a source partition to one merge partition; without cells it is a mark.

    ``complete`` is true on the last part of a flush: only then ``next_offset`` is contained.
    """

    version: int
    epoch: int
    source: int
    flush: int
    part: int
    complete: bool
    next_offset: int
    as_of_ms: int
    cells: list[CellValue]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Partial)


def encode_partial(partial: Partial) -> bytes:
    """The partial as MessagePack; integers beyond 64 bits travel as decimal strings."""
    try:
        return _encoder.encode(partial)
    except OverflowError:
        return _encoder.encode(_with_wide_integers(partial))


def decode_partial(value: bytes | None) -> Partial:
    """The partial in ``value``; raises ``CorruptRecord`` when it is none this code can read."""
    if value is None:
        raise CorruptRecord("a partial without a value")
    try:
        partial = _decoder.decode(value)
    except msgspec.ValidationError:
        partial = _decode_wide(value)
    except UNREADABLE as error:
        raise unreadable(value, "partial", PARTIAL_VERSION, error) from error
    if partial.version != PARTIAL_VERSION:
        raise wrong_version("partial", partial.version, PARTIAL_VERSION)
    return partial


def _with_wide_integers(partial: Partial) -> list[object]:
    fields: list[object] = list(msgspec.structs.astuple(partial))
    fields[-1] = [(s, d, [str(number) for number in totals]) for s, d, totals in partial.cells]
    return fields


def _decode_wide(value: bytes) -> Partial:
    try:
        fields = msgspec.msgpack.decode(value)
        *head, cells = fields
        decoded = [(s, d, tuple(int(number) for number in totals)) for s, d, totals in cells]
        return msgspec.convert([*head, decoded], Partial)
    except UNREADABLE as error:
        raise unreadable(value, "partial", PARTIAL_VERSION, error) from error
