"""What the ledger gives a restore: cells, ids, policies and rates of older logs."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord
from clickhouse_connect.driver.client import Client

from pipeline.core.cells import sum_totals
from pipeline.core.policies import policy_from_object, policy_json
from pipeline.core.restored import restored_from_header
from pipeline.core.totals import shard_of
from pipeline.ledger.columns import LEDGER_COLUMNS, entries_table
from pipeline.ledger.manifests import LogEpoch
from pipeline.ledger.opening import (
    accepted_ids,
    control_sums,
    coverage,
    extent,
    opening_cells,
    watermarks_ms,
)
from pipeline.ledger.recorder import PolicyChanges, RateChanges
from pipeline.ledger.registers import (
    Register,
    append_policies,
    append_rates,
    known_policies,
    known_rates,
    policies_before,
    rates_before,
)
from tests.ledger.priced_blocks import block, row

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = int(NOON.timestamp()) // 86_400
NOON_MS = int(NOON.timestamp() * 1000)
DAY_MS = 86_400_000
HUGE = 2**62 + 1
LOG = LogEpoch(2, "log", NOON)


@pytest.fixture
def filled(client: Client) -> Client:
    """Two entries of epoch 1, a correction of the first, and one entry of epoch 2."""
    one = {"occurred_at_us": NOON_MS * 1000, "recorded_at_ms": NOON_MS, "port_id": "a|b"}
    priced = {"cost_nano": HUGE, "price_status": "priced", "billing_scope": "org"}
    unpriced = {"cost_nano": None, "price_status": "unpriced", "billing_scope": "user"}
    tokens = {"input_tokens": 7, "output_tokens": 3, "organization_id": "o", "group_id": ""}
    rows = [
        row(event_id="e0", user_id="*", source_offset=0, **one, **priced, **tokens),
        row(event_id="e1", user_id="", source_offset=1, **one, **unpriced, **tokens),
        row(event_id="e2", user_id="u", source_offset=2, **one, **priced, **tokens),
    ]
    later = [row(event_id="e3", user_id="u", **one, **priced, **tokens)]
    for entries in (block(rows, 0, 3), block(later, 0, 1, epoch=2)):
        client.insert_arrow("ledger_entries", entries_table([entries], "USD"))
    void = {
        "entry_no": "1",
        "correction_id": "'c1'",
        "requests": "-1",
        "cost_nano": f"-{HUGE}",
        "total_tokens": "-10",
    }
    columns = ", ".join(void.get(column, column) for column in LEDGER_COLUMNS)
    client.command(
        f"INSERT INTO ledger_entries ({', '.join(LEDGER_COLUMNS)}) "
        f"SELECT {columns} FROM ledger_entries WHERE event_id = 'e2'"
    )
    return client


def cells_of(client: Client, epoch: int, oldest_day: int) -> dict[tuple[str, int], Any]:
    found = [cell for batch in opening_cells(client, epoch, oldest_day) for cell in batch]
    shards = [shard_of(scope) for scope, _, _ in found]
    assert shards == sorted(shards)
    return {(scope, day): totals for scope, day, totals in found}


def test_cells_are_the_sums_of_older_entries_corrections_included(filled: Client) -> None:
    first = (1, 10, HUGE, HUGE, 0, 0)
    unpriced = (1, 10, 0, 0, 1, 0)
    voided = (0, 0, 0, 0, 0, 0)
    assert cells_of(filled, 2, DAY) == {
        ("all", DAY): sum_totals([first, unpriced]),
        ("port:a|b", DAY): sum_totals([first, unpriced]),
        ("org:o", DAY): sum_totals([first, unpriced]),
        ("user:*", DAY): first,
        ("user:u", DAY): voided,
    }
    assert cells_of(filled, 3, DAY)["all", DAY] == (3, 30, 2 * HUGE, 2 * HUGE, 1, 0)
    assert cells_of(filled, 2, DAY + 1) == {}


def test_control_sums_are_what_the_cells_of_a_kind_add_up_to(filled: Client) -> None:
    sums = control_sums(filled, 3, DAY)
    for kind, total in sums.items():
        cells = cells_of(filled, 3, DAY).items()
        parts = [totals for (scope, _), totals in cells if scope.partition(":")[0] == kind]
        assert sum_totals(parts) == total, kind
    assert sums["group"] == (0, 0, 0, 0, 0, 0)
    assert sums["all"][2] > 2**63


def test_extent_coverage_and_watermarks_of_older_logs(filled: Client) -> None:
    assert extent(filled, 2) == (4, NOON_MS, NOON_MS)
    assert extent(filled, 1) == (0, 0, 0)
    assert coverage(filled, 9) == []
    assert watermarks_ms(filled, "usage.events", [1, 2]) == {0: NOON_MS}
    assert watermarks_ms(filled, "usage.events", [7]) == {}


def test_ids_are_those_of_what_was_accepted_within_the_time(filled: Client) -> None:
    def ids(epoch: int, from_ms: int, until_ms: int) -> list[tuple[str, str, str, int]]:
        batches = accepted_ids(filled, epoch, from_ms, until_ms)
        return sorted(tuple(one) for batch in batches for one in batch)  # type: ignore[misc]

    expected = [("a|b", f"e{n}", "", NOON_MS) for n in range(3)]
    expected.append(("a|b", "e2", "c1", NOON_MS))
    assert ids(2, NOON_MS - 3 * DAY_MS, NOON_MS + 1) == expected
    assert ids(2, NOON_MS - 3 * DAY_MS, NOON_MS) == []
    assert ids(2, NOON_MS + 1, NOON_MS + DAY_MS) == []
    assert len(ids(3, NOON_MS, NOON_MS + 1)) == 5


def test_registers_give_back_the_bytes_in_their_first_order(client: Client) -> None:
    odd = Register(1, 5, NOON_MS, b"\xff", b"\x00\xfe not UTF-8")
    rates = [Register(1, 7, NOON_MS + 1, b"r", b"{}"), odd, Register(2, 0, NOON_MS, b"r", b"")]
    append_rates(client, rates)
    append_rates(client, [odd])
    assert rates_before(client, 3) == [odd, rates[0], rates[2]]
    assert rates_before(client, 2) == [odd, rates[0]]
    assert known_rates(client) == {(1, 5), (1, 7), (2, 0)}

    policies = [
        Register(1, 0, NOON_MS, b"k", b"old"),
        Register(1, 9, NOON_MS, b"k", b"new"),
        Register(1, 4, NOON_MS, b"gone", b"was"),
        Register(2, 1, NOON_MS, b"gone", b""),
    ]
    append_policies(client, policies)
    assert policies_before(client, 3) == [policies[1]]
    assert policies_before(client, 2) == [policies[2], policies[1]]
    assert known_policies(client) == {b"k": b"new", b"gone": b""}


def record(offset: int, key: bytes, value: bytes | None, **changes: Any) -> ConsumerRecord:
    fields = {"topic": "t", "partition": 0, "timestamp_type": 1, "checksum": None}
    sizes = {"serialized_key_size": 0, "serialized_value_size": 0, "headers": ()}
    named = {"offset": offset, "timestamp": NOON_MS, "key": key, "value": value}
    return ConsumerRecord(**(fields | sizes | named | changes))


def test_a_rate_is_kept_once_by_its_first_place() -> None:
    rates = RateChanges(LOG, {(1, 3)})
    header = restored_from_header(1, 3, NOON_MS - 5)
    other = restored_from_header(1, 4, NOON_MS - 5)
    rates.take([record(0, b"a", b"1", headers=[header]), record(1, b"b", b"2", headers=[other])])
    rates.take([record(2, b"c", None), record(2, b"c", None)])
    assert rates.new() == [
        Register(1, 4, NOON_MS - 5, b"b", b"2"),
        Register(2, 2, NOON_MS, b"c", b""),
    ]
    assert rates.new() == []


def test_what_is_in_force_is_kept_where_the_ledger_says_otherwise() -> None:
    policy = policy_from_object({"scope": "all", "unit": "tokens", "period": "day", "hard_cap": 5})
    key, value = policy.key.encode(), policy_json(policy)
    changes = PolicyChanges(LOG, {key: value, b"user:x|tokens|day": b"{}", b"was": b""})
    changes.take([record(0, key, b"{"), record(1, key, value), record(2, key, b"{")])
    changes.note_gone(9)
    [gone] = changes.new()
    assert (gone.epoch, gone.offset, gone.key, gone.value) == (2, 9, b"user:x|tokens|day", b"")
    changes.take([record(3, key, None)])
    assert [(r.offset, r.key, r.value) for r in changes.new()] == [(3, key, b"")]
    assert changes.new() == []


def test_the_last_valid_policy_is_kept_where_only_the_registry_has_it() -> None:
    policy = policy_from_object({"scope": "all", "unit": "cost", "period": "day", "hard_cap": "1"})
    key, value = policy.key.encode(), policy_json(policy)
    changes = PolicyChanges(LOG, {})
    changes.seed([record(0, key, value)])
    changes.take([record(6, key, b"not a policy")])
    changes.note_gone(7)
    assert changes.new() == [Register(2, 6, NOON_MS, key, value)]


def test_a_clock_before_1970_is_no_trouble(client: Client) -> None:
    long_ago_ms = -int(timedelta(days=1).total_seconds() * 1000)
    append_policies(client, [Register(1, 0, long_ago_ms, b"k", b"v")])
    assert policies_before(client, 2)[0].recorded_at_ms == long_ago_ms
