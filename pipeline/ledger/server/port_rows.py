"""What a reader sees who is limited to ports: the reading views, and in them its ports' rows.

The engine puts a filter under every table that the views read. The optimizer must then not mix the
reader's own conditions with it, or an error that one of them raises on another port's row would
tell of that row; and counts of what was read must not tell how much there is of others.
"""

from collections.abc import Sequence
from typing import Final

from pipeline.ledger.server.limits import quote

VIEWS: Final = frozenset(
    {
        "usage_ledger",
        "usage_daily",
        "usage_daily_users",
        "usage_daily_ports",
        "ai_usage_daily",
        "focus_charges",
    }
)
"""The only tables of the ledger that such a reader may name."""
SYSTEM_TABLES_HIDDEN: Final = frozenset({"data_skipping_indices", "dictionaries"})

_FILTERED: Final = (
    "ledger_entries", "rollup_daily", "rollup_users", "rollup_ports", "rollup_charges",
)  # fmt: skip
_SEPARATE_CONDITIONS: Final = {
    "query_plan_merge_filters": "0",
    "query_plan_filter_push_down": "0",
    "query_plan_optimize_prewhere": "0",
    "optimize_move_to_prewhere": "0",
}


def port_settings(database: str, ports: Sequence[str]) -> dict[str, str]:
    """The settings under which a handle shows nothing but the rows of ``ports``."""
    own = f"port_id IN ({', '.join(map(quote, ports))})"
    filters = {f"{database}.{table}": own for table in _FILTERED}
    views = ", ".join(map(quote, sorted(VIEWS)))
    for table, name in (("tables", "name"), ("columns", "table")):
        filters[f"system.{table}"] = f"database != {quote(database)} OR `{name}` IN ({views})"
    pairs = ", ".join(f"{quote(table)}: {quote(text)}" for table, text in filters.items())
    return {
        "additional_table_filters": f"{{{pairs}}}",
        "output_format_write_statistics": "0",
        **_SEPARATE_CONDITIONS,
    }
