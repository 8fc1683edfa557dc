"""The settings a reader may send, and the limits it cannot lift."""

import re
from collections.abc import Iterable
from typing import Final

from pipeline.ledger.server.errors import (
    BAD_ARGUMENTS,
    READONLY,
    SETTING_CONSTRAINT_VIOLATION,
    QueryError,
)

READER_LIMITS: Final[dict[str, int]] = {
    "max_execution_time": 60,
    "max_result_rows": 1_000_000,
    "max_result_bytes": 256 << 20,
    "max_memory_usage": 1 << 30,
    "max_threads": 4,
}
# What holds for a reader and cannot be changed at all.
READER_FIXED: Final[dict[str, str]] = {
    "max_recursive_cte_evaluation_depth": "1000",
    "max_bytes_before_external_group_by": "0",
    "max_bytes_before_external_sort": "0",
}
SINK_DEFAULTS: Final[dict[str, str]] = {"max_execution_time": "600"}

_READER_MAY_SET: Final = frozenset(
    {
        "any_join_distinct_right_table_keys",
        "async_insert",  # drivers send it with reads, too
        "cast_string_to_dynamic_use_inference",
        "count_distinct_implementation",
        "date_time_input_format",
        "date_time_output_format",
        "decimal_check_overflow",
        "distributed_product_mode",
        "extremes",
        "final",
        "group_by_use_nulls",
        "join_algorithm",
        "join_use_nulls",
        "limit",
        "log_comment",
        "max_block_size",
        "offset",
        "output_format_arrow_compression_method",
        "prefer_column_name_to_alias",
        "result_overflow_mode",
        "select_sequential_consistency",
        "session_timezone",
        "timeout_overflow_mode",
        "totals_mode",
        "union_default_mode",
    }
)
_READER_MAY_SET_PREFIXES: Final = ("output_format_", "input_format_", "format_csv_")
# These name files.
_READER_MUST_NOT_SET: Final = frozenset({"output_format_schema"})
_SETTING_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def _limit(name: str, value: str, most: int) -> str:
    try:
        asked = float(value)
    except ValueError:
        raise QueryError(BAD_ARGUMENTS, f"Setting {name} needs a number, not '{value}'.") from None
    if not 0 < asked <= most:
        raise QueryError(
            SETTING_CONSTRAINT_VIOLATION, f"Setting {name} shouldn't be greater than {most}."
        )
    return value


def reader_settings(asked: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Every setting of a reader's query: the limits, lowered where it asked for less.

    Raises:
        QueryError: a setting is not the reader's to change, or would lift a limit.
    """
    settings = {name: str(most) for name, most in READER_LIMITS.items()} | READER_FIXED
    for name, value in asked:
        if name in READER_LIMITS:
            settings[name] = _limit(name, value, READER_LIMITS[name])
        elif name == "readonly" and value in ("1", "2"):
            continue
        elif name not in _READER_MUST_NOT_SET and (
            name in _READER_MAY_SET or name.startswith(_READER_MAY_SET_PREFIXES)
        ):
            settings[name] = value
        else:
            raise QueryError(READONLY, f"Cannot modify '{name}' setting in readonly mode.")
    return settings


def set_statement(settings: dict[str, str]) -> str:
    """The SET statement for ``settings``.

    Raises:
        QueryError: a name is not the name of a setting.
    """
    for name in settings:
        if not _SETTING_NAME.fullmatch(name):
            raise QueryError(BAD_ARGUMENTS, f"'{name}' is not the name of a setting.")
    pairs = ", ".join(f"{name} = {quote(value)}" for name, value in settings.items())
    return f"SET {pairs}"


def quote(text: str) -> str:
    """``text`` as a string literal of SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
