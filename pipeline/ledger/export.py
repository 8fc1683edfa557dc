"""A month of the ledger as a Parquet file, in bounded memory, under its name only when it is right.

Writing one file:

1. Stream the month's entries, day after day, into a file beside the place it will have.
2. Sync it, read it back, and hold it against what was streamed: rows, nanos and a digest.
3. Give it its name, and sync the folder.

A crash before 3 leaves a file whose name ends in ``.part``, which the next export writes anew.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from clickhouse_connect.driver.client import Client

from pipeline import faults
from pipeline.core.errors import CorruptRecord, Refused
from pipeline.ledger.columns import LEDGER_COLUMNS
from pipeline.ledger.months import Month, days_held

ROW_GROUP_ROWS = 65_536
"""So many entries are held in memory, and make one row group of the file."""

_DERIVED = {
    "audio_nano": "toDecimal128(audio_nano, 9) / 1000000000 AS audio_seconds",
    "cost_nano": "toDecimal128(cost_nano, 9) / 1000000000 AS cost",
}
_SELECTED = ", ".join(
    part
    for name in LEDGER_COLUMNS
    for part in ([name, _DERIVED[name]] if name in _DERIVED else [name])
)
# A day at a time and in the order of the primary key; what a day has too much of is sorted on disk.
_ENTRIES = (
    f"SELECT {_SELECTED} FROM {{table}} FINAL WHERE toDate(occurred_at) = {{{{day:Date}}}} "
    "ORDER BY toDate(occurred_at), port_id, event_id, entry_no"
)
_STREAMED: dict[str, Any] = {
    "max_bytes_before_external_sort": 256 << 20,
    "output_format_arrow_string_as_string": 1,
    "output_format_arrow_low_cardinality_as_dictionary": 0,
    "max_block_size": 16_384,
    "max_execution_time": 3_600,
}
_SUM = pa.decimal128(38, 0)


class Content(NamedTuple):
    """What entries add up to; two that are equal hold the same values in the same order."""

    rows: int
    cost_nano: int
    digest: str


class ContentSum:
    """Adds up tables of entries; the same cuts between tables lead to the same digest."""

    def __init__(self) -> None:
        self._rows = 0
        self._cost_nano = 0
        self._hash = hashlib.sha256()

    def add(self, entries: pa.Table) -> None:
        self._rows += entries.num_rows
        nanos = pc.call_function("sum", [pc.cast(entries["cost_nano"], _SUM)]).as_py()
        self._cost_nano += int(nanos or 0)
        for column in entries.itercolumns():
            self._hash.update(_bytes_of(column.combine_chunks()))

    def content(self) -> Content:
        """All that was added."""
        return Content(self._rows, self._cost_nano, self._hash.hexdigest())


def file_name(month: Month) -> str:
    """What a month's file is called."""
    return f"usage_ledger-{month}.parquet"


def write_month(client: Client, month: Month, folder: Path) -> tuple[Path, Content]:
    """Steps 1 to 3: the file of ``month`` in ``folder``, and what is in it.

    Replaces an earlier file of the month. Raises ``Refused`` when the ledger has nothing of the
    month, ``CorruptRecord`` when the file does not read back as it was written, and ``OSError``
    when it cannot be written; then nothing is left of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(month)
    partial = path.with_name(f"{path.name}.part")
    try:
        written = _write(client, month, partial)
        faults.point("export-after-write")
        found = read_back(partial)
        if found != written:
            raise CorruptRecord(f"{partial} does not read back as it was written: {found}")
        faults.point("export-before-rename")
        partial.replace(path)
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    faults.point("export-after-rename")
    return path, written


def read_back(path: Path) -> Content:
    """What is in a file that ``write_month`` wrote. Raises ``CorruptRecord`` when it is none."""
    total = ContentSum()
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                total.add(file.read_row_group(group))
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptRecord(f"{path} is no file of a month that can be read: {error}") from error
    return total.content()


def month_content(client: Client, month: Month, table: str) -> Content:
    """What ``table`` holds of the month, in the terms of a file."""
    total = ContentSum()
    for entries in _groups(client, month, table):
        total.add(entries)
    return total.content()


def _write(client: Client, month: Month, path: Path) -> Content:
    """Steps 1 and, but for reading back, 2."""
    total = ContentSum()
    writer: pq.ParquetWriter | None = None
    try:
        for entries in _groups(client, month, "ledger_entries"):
            if writer is None:
                writer = pq.ParquetWriter(path, entries.schema, compression="zstd")
            total.add(entries)
            writer.write_table(entries, row_group_size=ROW_GROUP_ROWS)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise Refused(f"the ledger has no entries of {month}")
    _sync(path, os.O_RDONLY)
    return total.content()


def _groups(client: Client, month: Month, table: str) -> Iterator[pa.Table]:
    """The month's entries in tables of ``ROW_GROUP_ROWS``, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in _batches(client, month, table):
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= ROW_GROUP_ROWS:
            whole = pa.Table.from_batches(waiting)
            full = rows - rows % ROW_GROUP_ROWS
            for start in range(0, full, ROW_GROUP_ROWS):
                yield whole.slice(start, ROW_GROUP_ROWS)
            waiting = whole.slice(full).to_batches()
            rows -= full
    if rows:
        yield pa.Table.from_batches(waiting)


def _batches(client: Client, month: Month, table: str) -> Iterator[pa.RecordBatch]:
    statement = _ENTRIES.format(table=table)
    for day in days_held(client, month, table):
        with client.query_arrow_stream(
            statement, parameters={"day": day}, settings=_STREAMED
        ) as batches:
            yield from batches


def _bytes_of(column: pa.Array) -> bytes:
    """The same bytes for the same values, wherever their buffers come from."""
    if pa.types.is_map(column.type):
        lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
        start, stop = column.offsets[0].as_py(), column.offsets[-1].as_py()
        parts: Iterable[bytes] = (
            lengths.tobytes(),
            _bytes_of(column.keys.slice(start, stop - start)),
            _bytes_of(column.items.slice(start, stop - start)),
        )
    elif pa.types.is_string(column.type):
        lengths = pc.call_function("binary_length", [column]).to_numpy(zero_copy_only=False)
        offsets = np.frombuffer(column.buffers()[1], np.int32)
        first, last = offsets[column.offset], offsets[column.offset + len(column)]
        text = column.buffers()[2]
        parts = (lengths.tobytes(), b"" if text is None else text.slice(first, last - first))
    elif pa.types.is_decimal(column.type):
        parts = (_bytes_of(pc.cast(column, pa.string()).fill_null("")),)
    else:
        nulls = column.is_null().to_numpy(zero_copy_only=False).tobytes()
        values = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
        plain = pc.cast(values, pa.int64()) if not pa.types.is_integer(column.type) else values
        parts = (nulls, plain.to_numpy(zero_copy_only=False).tobytes())
    return b"".join(bytes(part) for part in parts)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
