"""What the ledger keeps of policies and rates: what a restore gives back to an empty Kafka.

Both tables are append-only and keyed by the place of the record, so writing one twice is harmless.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client

from pipeline.ledger.manifests import INSERT_SETTINGS

_COLUMNS = ("epoch", "offset", "recorded_at", "key", "value")
_SELECTED = "epoch, offset, toUnixTimestamp64Milli(recorded_at), key, value"
_RATES = f"""
SELECT {_SELECTED} FROM rate_records FINAL WHERE epoch < {{before_epoch:UInt32}}
ORDER BY epoch, offset
"""
_RATE_PLACES = "SELECT DISTINCT epoch, offset FROM rate_records"
_POLICIES = f"""
SELECT {_SELECTED} FROM policy_records FINAL WHERE epoch < {{before_epoch:UInt32}}
ORDER BY key, epoch DESC, offset DESC LIMIT 1 BY key
"""
_ANY_EPOCH = 2**32 - 1
# Keys and values are bytes as producers sent them, not always UTF-8.
_AS_BYTES = {"String": "bytes"}


@dataclass(frozen=True)
class Register:
    """A record of ``pricing.rates``, or the policy (JSON) that came into force under ``key``.

    ``epoch`` and ``offset`` are its place in the log it first stood in, ``recorded_at_ms`` its
    Kafka timestamp there. An empty ``value`` of a policy says that there is none any more.
    """

    epoch: int
    offset: int
    recorded_at_ms: int
    key: bytes
    value: bytes


def append_rates(client: Client, rates: Sequence[Register]) -> None:
    """Keeps records of ``pricing.rates``."""
    _append(client, "rate_records", rates)


def append_policies(client: Client, policies: Sequence[Register]) -> None:
    """Keeps what came into force under the keys of policies."""
    _append(client, "policy_records", policies)


def rates_before(client: Client, epoch: int) -> list[Register]:
    """Every record of rates from logs older than ``epoch``, in the order they first arrived."""
    return _read(client, _RATES, epoch)


def policies_before(client: Client, epoch: int) -> list[Register]:
    """The policies in force at the end of the logs older than ``epoch``."""
    return [register for register in _read(client, _POLICIES, epoch) if register.value]


def known_rates(client: Client) -> set[tuple[int, int]]:
    """The places (epoch, offset) of all rates that are kept."""
    rows = client.query(_RATE_PLACES).result_rows
    return {(int(epoch), int(offset)) for epoch, offset in rows}


def known_policies(client: Client) -> dict[bytes, bytes]:
    """The newest value kept under each key, empty where there is no policy any more."""
    return {register.key: register.value for register in _read(client, _POLICIES, _ANY_EPOCH)}


def _append(client: Client, table: str, registers: Sequence[Register]) -> None:
    rows = [
        (r.epoch, r.offset, _instant(r.recorded_at_ms), r.key, r.value or b"") for r in registers
    ]
    client.insert(table, rows, column_names=_COLUMNS, settings=INSERT_SETTINGS)


def _read(client: Client, query: str, before_epoch: int) -> list[Register]:
    parameters = {"before_epoch": before_epoch}
    found = client.query(query, parameters=parameters, query_formats=_AS_BYTES).result_rows
    return [
        Register(int(epoch), int(offset), int(recorded_at_ms), bytes(key), bytes(value))
        for epoch, offset, recorded_at_ms, key, value in found
    ]


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC).replace(
        microsecond=milliseconds % 1000 * 1000
    )
