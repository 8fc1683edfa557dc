"""The compiled library, as far as there is one, with the types of its functions."""

import ctypes
from ctypes import POINTER, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any, Final

from pipeline.core.errors import TallyportError
from pipeline.core.event_fields import COUNTERS
from pipeline.core.record_columns import RECORD
from pipeline.native.build import LIBRARY, source_digest

MODEL: Final = ("at", "at", "at", "length", "length", "length", "first_us")
RATE: Final = (
    "type", "since_us", "until_us", "most_input",
    "request", *COUNTERS, "denominator",
    "status", "estimated", "name_at", "name_length",
)  # fmt: skip
SUM: Final = (
    "day", "at", "at", "at", "length", "length", "length", "home",
    "requests", "tokens", "cost_nano", "unpriced", "user_cost_nano", "user_unpriced",
)  # fmt: skip
SEGMENT: Final = (
    "filter", "high", "low", "times", "filter_words", "slots", "times_bytes", "time_base_ms",
    "earliest_ms", "latest_ms", "room", "added", "newest_ms",
)  # fmt: skip
"""The structures of the library that are nothing but numbers of eight bytes."""


class Rules(ctypes.Structure):
    """``Rules`` of the library."""

    _fields_ = (
        ("partition", c_int64),
        ("partitions", c_int64),
        ("max_age_us", c_int64),
        ("max_skew_us", c_int64),
    )


class Groups(ctypes.Structure):
    """``Groups`` of the library."""

    _fields_ = (
        ("slots", c_void_p),
        ("mask", c_uint64),
        ("seed", c_uint64),
        ("names", c_void_p),
        ("count", ctypes.c_uint32),
    )


_P = c_void_p
_RULES, _GROUPS = POINTER(Rules), POINTER(Groups)
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "tp_crc32c": (c_int64, (_P, c_int64)),
    "tp_scan": (c_int64, (_P, c_int64, c_int64, c_int64, c_int64, c_int64, _P)),
    "tp_read": (None, (_P, _P, c_int64, _RULES, _P, _P, _P)),
    "tp_models": (c_int64, (_P, _P, _P, c_int64, _GROUPS, _P, _P)),
    "tp_price": (c_int64, (_P, _P, c_int64, _P, _P, _P)),
    "tp_rows": (c_int64, (_P, _P, _P, c_int64, _P, _P, _P, _P, _P, _P, _P)),
    "tp_add_up": (None, (_P, _P, _P, c_int64, _P, _P, _P, c_int64, _GROUPS, _P, _P, _P)),
    "tp_admit": (c_int64, (_P, c_int64, _P, _P, _P, c_int64, c_int64, c_int64, _P)),
    "tp_row_bytes": (c_int64, ()),
    "tp_record_bytes": (c_int64, ()),
    "tp_event_bytes": (c_int64, ()),
    "tp_name_bytes": (c_int64, ()),
    "tp_rate_bytes": (c_int64, ()),
    "tp_sum_bytes": (c_int64, ()),
    "tp_model_bytes": (c_int64, ()),
    "tp_segment_bytes": (c_int64, ()),
    "tp_source": (ctypes.c_char_p, ()),
}


@cache
def library() -> Any | None:
    """The library; None where none was compiled.

    Raises ``TallyportError`` for one that was compiled from another source: it would do something
    else than this release.
    """
    if not LIBRARY.exists():
        return None
    # Its functions hold the interpreter's lock: they take less than waiting for it may.
    try:
        found = ctypes.PyDLL(str(LIBRARY))
    except OSError as error:
        raise TallyportError(
            f"{LIBRARY.name} cannot be loaded ({error}); run `python -m pipeline.native.build`"
        ) from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    compiled = found.tp_source().decode()
    if compiled != source_digest():
        raise TallyportError(
            f"{LIBRARY.name} was compiled from another source; "
            "run `python -m pipeline.native.build`"
        )
    laid_out = [
        getattr(found, f"tp_{name}_bytes")()
        for name in ("record", "model", "rate", "sum", "segment")
    ]
    if laid_out != [RECORD.itemsize, *(8 * len(fields) for fields in (MODEL, RATE, SUM, SEGMENT))]:
        raise TallyportError(f"{LIBRARY.name} lays out its arrays otherwise than this release")
    return found
