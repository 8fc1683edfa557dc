"""The version that an internal record states, whatever else it holds.

Internal records are MessagePack arrays whose first element is their version.
"""

import msgspec

from pipeline.core.errors import CorruptRecord

UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
"""What decoding any bytes may raise."""


def unreadable(value: bytes, what: str, version: int, error: Exception) -> CorruptRecord:
    """The error for a record that is no ``what`` of ``version``: of another version, or none."""
    stated = _stated_version(value)
    if stated is None or stated == version:
        return CorruptRecord(f"not a {what}: {error}")
    return wrong_version(what, stated, version)


def wrong_version(what: str, stated: object, version: int) -> CorruptRecord:
    """The error for a record of a version that this release does not read."""
    return CorruptRecord(f"{what} of version {stated}; this release reads {version}")


def _stated_version(value: bytes) -> object:
    try:
        fields = msgspec.msgpack.decode(value)
    except UNREADABLE:
        return None
    return fields[0] if isinstance(fields, list) and fields else None
