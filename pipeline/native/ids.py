"""Remembered ids, looked up and added by the compiled library."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core.dedupe_segment import Mask, Segment, Times, Words
from pipeline.native.library import SEGMENT, library

_ROOM, _ADDED, _NEWEST_MS = map(SEGMENT.index, ("room", "added", "newest_ms"))


class IdSearch:
    """``core.dedupe.IdSearch``. ``id_search`` makes one where it can."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def admit(
        self,
        segments: Sequence[Segment],
        words: Words,
        times_ms: Times,
        arrived_ms: Times,
        horizon_ms: int,
        admitted: Mask,
        start: int,
        is_open: bool,
    ) -> int:
        """See ``core.dedupe.IdSearch.admit``."""
        words = np.ascontiguousarray(words)
        times_ms, arrived_ms = np.ascontiguousarray(times_ms), np.ascontiguousarray(arrived_ms)
        table = np.array([_layout(segment) for segment in segments], np.int64)
        if segments and not is_open:
            table[-1, _ROOM] = 0
        reached: int = self._compiled.tp_admit(
            table.ctypes.data, len(segments), words.ctypes.data, times_ms.ctypes.data,
            arrived_ms.ctypes.data, len(words), start, horizon_ms, admitted.ctypes.data,
        )  # fmt: skip
        if segments:
            # Not by numpy's indices: these let go of the interpreter's lock and wait for it.
            last = table[-1].tolist()
            segments[-1].count += last[_ADDED]
            segments[-1].newest_ms = last[_NEWEST_MS]
        return reached


def id_search() -> IdSearch | None:
    """A search for ids; None where nothing was compiled."""
    compiled = library()
    return None if compiled is None else IdSearch(compiled)


def _layout(segment: Segment) -> tuple[int, ...]:
    """The values of ``SEGMENT``."""
    return (*segment.addresses, *segment.measures, segment.room(), 0, segment.newest_ms)
