"""The embedded ClickHouse: chDB behind ClickHouse's HTTP protocol.

Owns the process, its users and what a reader may do. Does not own the ledger's tables: those
are made by the migrations, through this server like through any ClickHouse.
"""

from pipeline.ledger.server.run import run_ledger_server
from pipeline.ledger.server.users import READER, SINK_USER

__all__ = ["READER", "SINK_USER", "run_ledger_server"]
