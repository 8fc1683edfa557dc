"""Many times at once against the parser of single ones."""

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import timestamp_columns
from pipeline.core.timestamp_columns import parse_many_us
from pipeline.core.timestamps import parse_rfc3339_us

FORMS = st.sampled_from(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"])
ODD = st.sampled_from(
    ["2016-12-31T23:59:60Z", "2026-02-29T00:00:00Z", "0000-02-29T24:00:00Z", "2026-13-01T00:60:00Z",
     "2026-11-22T10:15:03.123Z", "2026-11-22t10:15:03.123456z", "2026-11-22T10:15:03+05:30",
     "2026-11-22T10:15:0٣.12345Z", "2026-11-22T10:15:٠٣.123Z", "9999-12-31T23:59:59.999999Z", ""]
)  # fmt: skip


def written(at: datetime, form: str) -> str:
    return at.strftime(form).rjust(len("2026-11-22T10:15:03Z"), "0")


@settings(max_examples=300, deadline=None)
@given(
    FORMS,
    st.lists(st.datetimes(), max_size=50),
    st.lists(st.tuples(st.integers(0, 49), st.integers(0, 30), st.characters()), max_size=2),
    st.lists(ODD, max_size=1),
    st.booleans(),
)
def test_many_are_read_as_each_of_them_is(
    form: str,
    times: list[datetime],
    spoilt: list[tuple[int, int, str]],
    odd: list[str],
    cut: bool,
) -> None:
    texts = [written(at, form) for at in times] + odd
    if cut:
        texts = [text[:-4] + "Z" for text in texts]
    for index, at, letter in spoilt:
        if index < len(texts):
            texts[index] = texts[index][:at] + letter + texts[index][at + 1 :]
    assert parse_many_us(texts) == [parse_rfc3339_us(text) for text in texts]


@pytest.mark.parametrize("fraction", ["", ".123", ".123456"])
def test_times_that_are_written_alike_are_read_at_once(fraction: str) -> None:
    texts = [f"2026-{month:02d}-28T23:59:{second:02d}{fraction}Z" for month in range(1, 13)
             for second in (0, 59)]  # fmt: skip
    assert timestamp_columns._parse_alike(texts) == [parse_rfc3339_us(text) for text in texts]
