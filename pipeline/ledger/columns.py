"""Priced blocks as one Arrow table in the ledger's column order.

Rows leave as typed columns: straight from the bytes of their blocks where those are at hand, else
by one transposition of tuples, then one array a column.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import accumulate, chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.blocks import MARK_COLUMNS, ROW_COLUMNS, HeldRows, Mark, PricedBlock
from pipeline.core.errors import CorruptRecord
from pipeline.ledger.packed_rows import Packed, Unexpected, packed_columns, packed_days

COUNTER_COLUMNS: tuple[str, ...] = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "output_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
    "characters",
    "images",
    "web_searches",
)

_TAGS = pa.map_(pa.string(), pa.string())
_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("entry_no", pa.uint32()),
        ("requests", pa.int8()),
        ("unpriced_requests", pa.int8()),
        ("occurred_at", pa.timestamp("us", "UTC")),
        ("recorded_at", pa.timestamp("ms", "UTC")),
        ("port_id", pa.string()),
        ("organization_id", pa.string()),
        ("group_id", pa.string()),
        ("user_id", pa.string()),
        ("session_id", pa.string()),
        ("service", pa.string()),
        ("feature", pa.string()),
        ("kind", pa.string()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("endpoint", pa.string()),
        ("request_id", pa.string()),
        ("service_tier", pa.string()),
        ("billing_scope", pa.string()),
        *((name, pa.int64()) for name in COUNTER_COLUMNS),
        ("total_tokens", pa.int64()),
        ("audio_nano", pa.int64()),
        ("cost_nano", pa.int64()),
        ("currency", pa.string()),
        ("rate_id", pa.string()),
        ("price_status", pa.string()),
        ("estimated", pa.bool_()),
        ("self_hosted", pa.bool_()),
        ("cache_hit", pa.bool_()),
        ("reported_cost", pa.string()),
        ("tags", _TAGS),
        ("correction_id", pa.string()),
        ("correction_reason", pa.string()),
        ("epoch", pa.uint32()),
        ("source_topic", pa.string()),
        ("source_partition", pa.uint32()),
        ("source_offset", pa.int64()),
    ]
)
LEDGER_COLUMNS: tuple[str, ...] = tuple(_SCHEMA.names)
"""The columns of table ``ledger_entries``, in its order."""

_NOT_PACKED = (Unexpected, IndexError, pa.ArrowInvalid)
"""What says that columns cannot be read from the bytes of these rows."""
_US_PER_DAY = 86_400_000_000
_EPOCH_DAY = date(1970, 1, 1)
_OCCURRED_AT = ROW_COLUMNS.index("occurred_at_us")
_NULLABLE = frozenset({"cost_nano"})
_RENAMED = {"occurred_at_us": "occurred_at", "recorded_at_ms": "recorded_at"}


def entries_table(blocks: Sequence[PricedBlock], currency: str) -> pa.Table:
    """The rows of ``blocks`` as ledger entries, one table for all of them.

    Raises ``CorruptRecord`` when one is not what ``ROW_COLUMNS`` and ``MARK_COLUMNS`` say.
    """
    events = [block for block in blocks if not block.marks]
    corrections = [block for block in blocks if block.marks]
    first_entries = _table(events, currency)
    if not corrections:
        return first_entries
    return pa.concat_tables([first_entries, _table(corrections, currency)])


def _table(blocks: Sequence[PricedBlock], currency: str) -> pa.Table:
    columns = _packed_columns(blocks) or _checked_row_columns(blocks)
    status = columns["price_status"]
    columns["unpriced_requests"] = pc.cast(_call("equal", status, "unpriced"), pa.int8())
    columns["estimated"] = _call("or", columns["estimated"], columns.pop("price_estimated"))
    columns["total_tokens"] = _call("add", columns["input_tokens"], columns["output_tokens"])
    columns |= _constants(blocks, len(status), currency)
    columns |= _mark_columns(list(chain.from_iterable(b.marks for b in blocks)), len(status))
    return pa.table([columns[name] for name in LEDGER_COLUMNS], schema=_SCHEMA)


def by_month(entries: pa.Table) -> Iterator[pa.Table]:
    """``entries`` cut by the UTC month of ``occurred_at``: one ClickHouse partition each."""
    months = pc.cast(entries["occurred_at"], pa.timestamp("us"))
    months = months.to_numpy().astype("datetime64[M]").astype(np.int64)
    first_to_last = np.unique(months)
    if len(first_to_last) == 1:
        yield entries
        return
    for month in first_to_last:
        yield entries.filter(pa.array(months == month))


def days_of(blocks: Sequence[PricedBlock]) -> tuple[date, ...]:
    """The UTC days of the rows' ``occurred_at``, in order.

    Raises ``CorruptRecord`` when the rows are not what ``ROW_COLUMNS`` says.
    """
    if not (packed := _packed(blocks)):
        days = _days_of_rows(blocks)
    else:
        try:
            days = packed_days(packed, ROW_COLUMNS)
        except _NOT_PACKED:
            days = _days_of_rows(blocks)
    try:
        return tuple(_EPOCH_DAY + timedelta(days=day) for day in sorted(days))
    except OverflowError as error:
        raise CorruptRecord(f"a priced block's rows are of no day: {error}") from error


def _days_of_rows(blocks: Sequence[PricedBlock]) -> set[int]:
    try:
        return {row[_OCCURRED_AT] // _US_PER_DAY for block in blocks for row in block.rows}
    except (TypeError, IndexError) as error:
        raise CorruptRecord(f"a priced block's rows have no time: {error}") from error


def _call(function: str, left: pa.Array, right: pa.Array | str) -> pa.Array:
    operand = pa.scalar(right) if isinstance(right, str) else right
    return pc.call_function(function, [left, operand])


def _packed_columns(blocks: Sequence[PricedBlock]) -> dict[str, pa.Array] | None:
    """The columns from the blocks' bytes; None where they have to be taken from the rows."""
    packed = _packed(blocks)
    if not packed:
        return None
    try:
        columns = packed_columns(packed, ROW_COLUMNS, _kind_of, _NULLABLE)
    except _NOT_PACKED:
        return None
    return {_RENAMED.get(name, name): column for name, column in columns.items()}


def _packed(blocks: Sequence[PricedBlock]) -> list[Packed]:
    """The bytes of the rows; empty unless those of all blocks are at hand."""
    held = [block.rows for block in blocks if isinstance(block.rows, HeldRows)]
    return [Packed(rows.packed, len(rows)) for rows in held] if len(held) == len(blocks) else []


def _kind_of(row_name: str) -> pa.DataType:
    if row_name == "price_estimated":
        return pa.bool_()
    return _SCHEMA.field(_RENAMED.get(row_name, row_name)).type


def _checked_row_columns(blocks: Sequence[PricedBlock]) -> dict[str, pa.Array]:
    rows = list(chain.from_iterable(block.rows for block in blocks))
    try:
        return _row_columns(rows)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise CorruptRecord(f"a priced block's rows do not fit the ledger: {error}") from error


def _row_columns(rows: list[tuple[object, ...]]) -> dict[str, pa.Array]:
    values = list(zip(*rows, strict=True)) or [()] * len(ROW_COLUMNS)
    columns: dict[str, pa.Array] = {}
    for row_name, column in zip(ROW_COLUMNS, values, strict=True):
        name = _RENAMED.get(row_name, row_name)
        if name == "tags":
            columns[name] = _tags_array(column)
        else:
            columns[name] = pa.array(column, _kind_of(row_name))
    return columns


def _mark_columns(marks: list[Mark], count: int) -> dict[str, pa.Array]:
    """What corrections say instead of what a first entry has; empty without marks."""
    if not marks:
        return {}
    if len(marks) != count:
        raise CorruptRecord(f"a priced block has {len(marks)} marks for {count} rows")
    try:
        return {
            name: pa.array(column, _SCHEMA.field(name).type)
            for name, column in zip(MARK_COLUMNS, zip(*marks, strict=True), strict=True)
        }
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptRecord(f"a correction's mark does not fit the ledger: {error}") from error


def _tags_array(tags: Sequence[dict[str, str]]) -> pa.Array:
    offsets = list(accumulate(map(len, tags), initial=0))
    keys = pa.array(list(chain.from_iterable(tags)), pa.string())
    values = pa.array(list(chain.from_iterable(tag.values() for tag in tags)), pa.string())
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, values)


def _constants(blocks: Sequence[PricedBlock], count: int, currency: str) -> dict[str, pa.Array]:
    lengths = [len(block.rows) for block in blocks]
    return {
        "entry_no": pa.array(np.zeros(count, np.uint32)),
        "requests": pa.array(np.ones(count, np.int8)),
        "currency": pa.repeat(currency, count),
        "correction_id": pa.repeat("", count),
        "correction_reason": pa.repeat("", count),
        "epoch": pa.array(np.repeat(np.array([b.epoch for b in blocks], np.uint32), lengths)),
        "source_topic": pa.array(
            np.repeat(np.array([b.topic for b in blocks], object), lengths), pa.string()
        ),
        "source_partition": pa.array(
            np.repeat(np.array([b.partition for b in blocks], np.uint32), lengths)
        ),
    }
