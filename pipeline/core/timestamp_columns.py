"""Many RFC 3339 times at once, where all are written alike; else one by one.

Most producers write one form, and the times of a slice then stand below each other like a table:
each column of digits is read as a whole, for a fraction of what single texts cost.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.core.timestamps import US_PER_MINUTE, US_PER_SECOND, parse_rfc3339_us

# Below it the fixed cost of numpy's calls is higher than what they save.
_FEW: Final = 32
_DAY_CHARS: Final = len("2026-01-01")
_SHAPES: Final = (
    "0000-00-00T00:00:00Z",
    "0000-00-00T00:00:00.000Z",
    "0000-00-00T00:00:00.000000Z",
)
_HIGHEST: Final = np.array([23, 59, 59])


class _Form:
    """A way to write a time: where its digits stand, and what stands between them."""

    def __init__(self, shape: str) -> None:
        letters = np.frombuffer(shape.encode(), np.uint8)
        self.is_digit: npt.NDArray[np.bool_] = letters == ord("0")
        self.others = letters[~self.is_digit]
        digits = np.flatnonzero(self.is_digit).tolist()
        # Columns: hour, minute, second, microsecond, and the day's eight digits as one number.
        # Floats, as only their products are fast; every number in them is far below 2⁵³, so all
        # are exact.
        self.weights = np.zeros((len(digits), 5))
        for row, at in enumerate(digits):
            if at < _DAY_CHARS:
                self.weights[row, 4] = 10 ** (7 - row)
                continue
            place = at - len("2026-01-01T")
            if place < len("00:00:00"):
                self.weights[row, place // 3] = 1 if place % 3 else 10
            else:
                self.weights[row, 3] = 10 ** (5 - (place - len("00:00:00.")))


_FORMS: Final = {len(shape): _Form(shape) for shape in _SHAPES}
_US: Final = np.array([60.0 * US_PER_MINUTE, US_PER_MINUTE, US_PER_SECOND, 1])


def parse_many_us(texts: Sequence[str]) -> list[int | None]:
    """``parse_rfc3339_us`` of each."""
    found = _parse_alike(texts) if len(texts) > _FEW else None
    return [parse_rfc3339_us(text) for text in texts] if found is None else found


def _parse_alike(texts: Sequence[str]) -> list[int | None] | None:
    """None unless all are valid, of one form, and none is a leap second."""
    lengths = set(map(len, texts))
    form = _FORMS.get(lengths.pop())
    joined = "".join(texts)
    if form is None or lengths or not joined.isascii():
        return None
    letters = np.frombuffer(joined.encode(), np.uint8).reshape(len(texts), -1)
    digits = letters[:, form.is_digit] - np.uint8(ord("0"))
    if digits.max() > 9 or (letters[:, ~form.is_digit] != form.others).any():
        return None
    parts = digits.astype(np.float64) @ form.weights
    if (parts[:, :3] > _HIGHEST).any():
        return None
    days_us = _days_us(texts, parts[:, 4])
    if days_us is None:
        return None
    return (days_us + (parts[:, :4] @ _US).astype(np.int64)).tolist()


def _days_us(texts: Sequence[str], days: npt.NDArray[np.float64]) -> npt.NDArray[np.int64] | None:
    """When the day of each text begins; None when there is no such day."""
    # Where the day is another than in the text before: seldom, as events come in order.
    changes = np.flatnonzero(days[1:] != days[:-1]) + 1
    starts = [0, *changes.tolist()]
    begins: list[int] = []
    for start in starts:
        begin_us = parse_rfc3339_us(texts[start][:_DAY_CHARS] + "T00:00:00Z")
        if begin_us is None:
            return None
        begins.append(begin_us)
    ends = [*starts[1:], len(texts)]
    counts = [end - start for start, end in zip(starts, ends, strict=True)]
    return np.repeat(np.array(begins, np.int64), counts)
