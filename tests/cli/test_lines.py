import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.lines import Line, LineSplitter, follow_lines

MAX = 8


def joined(chunks: Sequence[bytes]) -> list[Line]:
    splitter = LineSplitter(MAX)
    found = [line for chunk in chunks for line in splitter.feed(chunk)]
    return found + splitter.finish()


@given(st.binary(max_size=60).map(lambda b: b.replace(b"\r", b"")), st.data())
def test_lines_do_not_depend_on_how_they_arrive(text: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    expected = [
        Line(number, line if len(line) <= MAX else None)
        for number, line in enumerate(text.split(b"\n"), 1)
        if line.strip() or len(line) > MAX
    ]
    assert joined([text]) == expected
    assert joined([text[:cut], text[cut:]]) == expected


def test_a_line_without_end_is_never_held_whole() -> None:
    lines = joined([b"x" * 1000] * 50 + [b"\nshort\n"])
    assert lines == [Line(1, None), Line(2, b"short")]


def test_windows_line_ends() -> None:
    assert joined([b"a\r\n\r\nb\r", b"\n"]) == [Line(1, b"a"), Line(3, b"b")]


@pytest.mark.parametrize("text", [b"", b"one\ntwo", b"one\n\ntwo\n"])
async def test_a_pipe_is_read_to_its_end(text: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    try:
        found = [line.text async for lines in follow_lines(reading, MAX) for line in lines]
    finally:
        os.close(reading)
    assert found == [line for line in text.split(b"\n") if line]
