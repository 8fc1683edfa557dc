"""Forgetting a user in the ledger: rows, rollups, and rows that are on their way meanwhile."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import Any

import msgspec
import pytest
from clickhouse_connect.driver.client import Client

from pipeline.audit.recount.pseudonyms import Pseudonyms as Recounted
from pipeline.core.blocks import ROW_COLUMNS, PricedBlock
from pipeline.core.errors import ConfigurationError, Refused, TallyportError
from pipeline.core.scopes import record_key
from pipeline.ledger.block_runs import Run
from pipeline.ledger.client import LedgerAddress
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.dropped import LEAVING, Source, register
from pipeline.ledger.export import Content
from pipeline.ledger.forgetting import check_forgettable, left_of, rename_user
from pipeline.ledger.months import parse_month
from pipeline.ledger.pseudonyms import Pseudonyms, load_pseudonyms, remember_forgotten
from pipeline.ledger.registers import Register, append_policies
from pipeline.ledger.writer import LedgerWriter
from pipeline.ops.forget import _Forgetting, user_of
from pipeline.settings import Settings
from tests import ledger_fixture
from tests.ledger.closed_days import close_all
from tests.ledger.priced_blocks import chain
from tests.stream.conftest import url_of

BLOCKS = chain(31, 12)
USER = ROW_COLUMNS.index("user_id")
BY_USER = (
    "SELECT user_id, sum(requests), sum(cost_nano), sum(total_tokens) FROM {} "
    "GROUP BY user_id ORDER BY 2, 3"
)


def writer_to(address: LedgerAddress) -> LedgerWriter:
    writer = LedgerWriter(Settings(clickhouse_url=url_of(address)))
    writer.holdings((), ())
    return writer


def run(blocks: Sequence[PricedBlock], unwritten: Sequence[PricedBlock] | None = None) -> Run:
    return Run(0, len(blocks), blocks, blocks if unwritten is None else unwritten)


def write(writer: LedgerWriter, one: Run) -> None:
    writer.write([one], writer.entries_of([one]))


def by_user(client: Client, view: str = "usage_ledger") -> dict[str, tuple[Any, ...]]:
    return {user: tuple(sums) for user, *sums in client.query(BY_USER.format(view)).result_rows}


def test_amounts_stay_and_the_id_goes(address: LedgerAddress, client: Client) -> None:
    write(writer_to(address), run(BLOCKS))
    close_all(client)
    before = by_user(client)
    pseudonym = remember_forgotten(client, "usér|3")
    assert pseudonym == remember_forgotten(client, "usér|3") != remember_forgotten(client, "u9")
    assert pseudonym.startswith("forgotten-")
    assert rename_user(client, "usér|3", pseudonym)
    assert left_of(client, "usér|3") == 0
    expected = {pseudonym if user == "usér|3" else user: sums for user, sums in before.items()}
    assert by_user(client) == by_user(client, "usage_daily") == expected
    close_all(client)
    assert by_user(client, "usage_daily") == by_user(client, "usage_daily_users") == expected
    assert rename_user(client, "usér|3", pseudonym) == []


def test_both_counts_know_a_user_by_the_same_pseudonym(client: Client) -> None:
    for user in ("u1", "usér|3", "u" * 256):
        remember_forgotten(client, user)
    known = load_pseudonyms(client)
    assert len(known.forgotten) == 3
    recounted = Recounted(known.key, known.forgotten)
    for user in ("u1", "usér|3", "u" * 256):
        assert known.renamed([user, "other", ""]) == {user: recounted.name_of(user)}
        assert recounted.name_of(known.of(user)) == known.of(user)
        assert recounted.scope_of(f"user:{user}") == f"user:{known.of(user)}"
        assert recounted.hides(f"user:{user}")
        assert recounted.hides(f"user:{known.of(user)}")
    assert recounted.name_of("other") == "other"
    assert not recounted.hides("user:other")
    assert not recounted.hides("org:u1")
    assert Recounted().scope_of("user:u1") == "user:u1"


def test_rows_on_their_way_are_renamed_before_they_count(
    address: LedgerAddress, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody is forgotten between a writer's look and its rows."""
    writer = writer_to(address)
    write(writer, run(BLOCKS[:4]))
    mark = DayMarks.before_change

    def forgotten_meanwhile(marks: DayMarks, to: Client, days: Collection[date]) -> None:
        monkeypatch.undo()
        rename_user(client, "u1", remember_forgotten(client, "u1"))
        mark(marks, to, days)

    monkeypatch.setattr(DayMarks, "before_change", forgotten_meanwhile)
    write(writer, run(BLOCKS[4:]))
    assert left_of(client, "u1") == 0
    sums = by_user(client)
    assert "u1" not in sums
    rows = [row for block in BLOCKS for row in block.rows]
    assert sum(requests for requests, *_ in sums.values()) == len(rows)
    with_id = sum(row[USER] == "u1" for row in rows)
    assert sums[load_pseudonyms(client).of("u1")][0] == with_id > 0


def nothing_renamed(client: Client, renamed: Mapping[str, str]) -> None:
    """In the place of what renames rows that are there already."""


def test_rows_of_a_later_round_never_show_the_id(
    address: LedgerAddress, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_to(address)
    write(writer, run(BLOCKS[:4]))
    rename_user(client, "u1", remember_forgotten(client, "u1"))
    monkeypatch.setattr("pipeline.ledger.writer.rename_entries", nothing_renamed)
    write(writer, run(BLOCKS[4:]))
    assert left_of(client, "u1") == 0


def test_rows_of_a_round_that_was_cut_short_are_renamed_by_the_next_one(
    address: LedgerAddress, client: Client
) -> None:
    writer = writer_to(address)
    write(writer, run(BLOCKS))
    client.command("TRUNCATE TABLE sink_manifests")
    remember_forgotten(client, "u1")
    unwritten = [msgspec.structs.replace(block, rows=[]) for block in BLOCKS]
    write(writer_to(address), run(BLOCKS, unwritten))
    assert left_of(client, "u1") == 0


def policy(offset: int, value: bytes, user: str = "usér|3") -> Register:
    key = record_key(f"user:{user}", "tokens", "month").encode()
    return Register(1, offset, 1_700_000_000_000, key, value)


async def test_records_of_policies_stay_until_a_recorder_noted_that_they_are_gone(
    address: LedgerAddress, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a slower one noted after they were dropped would bring the key back."""
    monkeypatch.setattr("pipeline.ops.forget.RECORDER_WAIT_S", 0.3)
    monkeypatch.setattr("pipeline.ops.forget.RECORDERS_APART_S", 0.0)
    settings = Settings(clickhouse_url=url_of(address), kafka_bootstrap="nowhere:9092")
    forgetting = _Forgetting(settings, client, "usér|3", "test")
    append_policies(client, [policy(5, b"{}"), policy(6, b"{}", "usér|33")])
    with pytest.raises(TallyportError, match="a sink runs, and run `tallyport forget` again"):
        await forgetting._drop_records()
    assert left_of(client, "usér|3") == 1
    append_policies(client, [policy(7, b"")])
    assert left_of(client, "usér|3") == 2
    await forgetting._drop_records()
    assert left_of(client, "usér|3") == 0
    assert left_of(client, "usér|33") == 1


def test_only_one_user_is_forgotten_at_a_time_and_only_when_all_entries_are_there(
    client: Client,
) -> None:
    for scope, why in (("port:p", "only users"), ("user:*", "every user"), ("user:", "empty")):
        with pytest.raises(ConfigurationError, match=why):
            user_of(scope)
    assert user_of("user:a:b|c") == "a:b|c"
    source = Source(1, "usage.events", 0, 1, 0, 0, 0)
    register(client, parse_month("2026-01"), LEAVING, [source], "f", Content(1, 0, ""))
    with pytest.raises(Refused, match="2026-01 is half dropped: run `tallyport export 2026-01"):
        check_forgettable(client)


def test_readers_do_not_see_the_key(embedded_ledger: ledger_fixture.LedgerAddress) -> None:
    reader = embedded_ledger.reader()
    try:
        for statement in (
            "SELECT * FROM pseudonym_keys",
            "SELECT 1 WHERE 'x' IN (SELECT key FROM tallyport.pseudonym_keys)",
            "SELECT 1 WHERE 'x' IN tallyport.pseudonym_keys",
            "DESCRIBE TABLE pseudonym_keys",
        ):
            with pytest.raises(Exception, match="pseudonym_keys"):
                reader.query(statement)
    finally:
        reader.close()


def test_nobody_is_renamed_while_nobody_is_forgotten() -> None:
    assert Pseudonyms().renamed(["u1", ""]) == {}
