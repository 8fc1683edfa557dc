"""The priced blocks of a flush: bounded in rows and in bytes, without a hole."""

import json

from pipeline.core.blocks import ROW_COLUMNS, decode_block
from pipeline.core.event_codec import decode_event
from pipeline.core.events import PricedEvent
from pipeline.core.intake import Taken
from pipeline.core.rows import Rows
from pipeline.stream.flush import BLOCK_BYTES, BLOCK_ROWS, BlockRun
from pipeline.stream.topics import SPECS
from tests.stream.worker_deployment import event

SOURCE_OFFSET = ROW_COLUMNS.index("source_offset")
MOST_BYTES = int(SPECS["priced"].extra["max.message.bytes"])


def rows_of(count: int, tag_length: int) -> Rows:
    tags = {f"{n:02d}": "\N{SHIP}" * tag_length for n in range(16)}
    events = list[PricedEvent]()
    for number in range(count):
        found = decode_event(json.dumps(event(number, tags=tags)).encode())
        assert isinstance(found, PricedEvent)
        found.source_offset = 10 + 2 * number
        events.append(found)
    return Rows.of(events)


def sealed(rows: Rows, next_offset: int) -> list[tuple[int, int, int]]:
    """From where to where each block reaches, and how many rows it has."""
    run = BlockRun(1, "usage.events", 0, 10)
    run.seal(rows, Taken(), next_offset)
    assert run.rows == len(rows)
    assert all(len(block) <= MOST_BYTES for block in run.encoded)
    blocks = [decode_block(block) for block in run.encoded]
    offsets = [row[SOURCE_OFFSET] for block in blocks for row in block.rows]
    assert offsets == rows.offsets.tolist()
    return [(block.first_offset, block.next_offset, len(block.rows)) for block in blocks]


def test_small_rows_fill_blocks() -> None:
    blocks = sealed(rows_of(2 * BLOCK_ROWS + 1, 1), 10_000)
    assert [count for _, _, count in blocks] == [BLOCK_ROWS, BLOCK_ROWS, 1]
    assert blocks[0][:2] == (10, 10 + 2 * BLOCK_ROWS - 1)
    assert blocks[-1][1] == 10_000


def test_large_rows_are_cut_before_a_broker_would_refuse_them() -> None:
    rows = rows_of(2_500, 172)
    assert len(rows.cut(0, BLOCK_ROWS)) > MOST_BYTES
    blocks = sealed(rows, 10_000)
    most = BLOCK_BYTES // (len(rows.packed) // len(rows))
    assert all(most - 2 <= count <= most + 2 for _, _, count in blocks[:-1])
    assert [begin for begin, _, _ in blocks] == [10, *(end for _, end, _ in blocks[:-1])]


def test_a_row_that_is_larger_than_a_block_has_one() -> None:
    rows = rows_of(3, 256)
    assert [rows.run_from(first, BLOCK_ROWS, 1) for first in range(3)] == [1, 2, 3]
    exact = int(rows.ends[1])
    assert rows.run_from(0, BLOCK_ROWS, exact) == 2
    assert rows.run_from(0, BLOCK_ROWS, exact - 1) == 1
