"""Rules of the pipeline, each broken in one place: the simulator must notice every one.

A mutant replaces one function or value of production code for the length of a block.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import pytest

from pipeline.core import accounts, dedupe, intake, tariffs
from pipeline.core.blocks import PricedBlock
from pipeline.corrections import ledger as corrections_ledger
from pipeline.corrections import resolver
from pipeline.ledger import writer
from pipeline.ledger.client import LedgerError
from pipeline.stream import (
    flow,
    flush,
    flush_loop,
    inbox,
    journal,
    merging,
    ownership,
    pricing,
    resolved_log,
    takeover,
)
from pipeline.stream.transaction import FencedProducer
from pipeline.stream.turns import transactional_ids
from tests.sim.scenario import scenario_of
from tests.sim.simulation import simulate

Mutant = Callable[[], AbstractContextManager[None]]
MUTANTS: dict[str, Mutant] = {}


def mutant(breaks: Callable[[pytest.MonkeyPatch], None]) -> Mutant:
    """Registers a mutant under its function's name."""

    @contextmanager
    def broken() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            breaks(patch)
            yield

    MUTANTS[breaks.__name__] = broken
    return broken


def first_seed_that_fails(seeds: Iterable[int]) -> tuple[int, list[str]] | None:
    """The first of ``seeds`` whose run shows a problem, and which."""
    for seed in seeds:
        outcome = simulate(scenario_of(seed))
        if outcome.problems:
            return seed, outcome.problems
    return None


@mutant
def former_owners_are_not_fenced(patch: pytest.MonkeyPatch) -> None:
    async def fence(*_: Any) -> None:
        return

    patch.setattr(ownership.Ownership, "_fence", fence)


@mutant
def one_of_two_ids_is_fenced(patch: pytest.MonkeyPatch) -> None:
    async def fence_one(client: Any, owner: str) -> None:
        producer = FencedProducer(client, transactional_ids(owner)[0], "")
        await producer.start()
        await producer.close()

    patch.setattr(ownership, "fence", fence_one)


@mutant
def no_seek_back_after_a_jump(patch: pytest.MonkeyPatch) -> None:
    async def seek_back(self: Any) -> None:
        return

    patch.setattr(inbox.Inbox, "_seek_back", seek_back)


@mutant
def goes_on_past_a_gap(patch: pytest.MonkeyPatch) -> None:
    offer = inbox.Inbox.offer

    async def offer_anything(self: Any, piece: Any) -> None:
        self._expected = max(self._expected, piece.position)
        await offer(self, piece)

    patch.setattr(inbox.Inbox, "offer", offer_anything)


@mutant
def takes_what_came_before(patch: pytest.MonkeyPatch) -> None:
    offer = inbox.Inbox.offer

    async def offer_again(self: Any, piece: Any) -> None:
        self._expected = min(self._expected, piece.position)
        self.reached = min(self.reached, piece.position)
        await offer(self, piece)

    patch.setattr(inbox.Inbox, "offer", offer_again)


@mutant
def stale_partials_are_applied(patch: pytest.MonkeyPatch) -> None:
    offer = inbox.Inbox.offer

    async def offer_again(self: Any, piece: Any) -> None:
        if piece.tp.topic.endswith("partials"):
            self._expected = min(self._expected, piece.position)
            self.reached = min(self.reached, piece.position)
        await offer(self, piece)

    patch.setattr(inbox.Inbox, "offer", offer_again)
    patch.setattr(merging.MergeStage, "_is_new", lambda self, partial: True)


@mutant
def later_parts_are_dropped(patch: pytest.MonkeyPatch) -> None:
    is_new = merging.MergeStage._is_new
    patch.setattr(
        merging.MergeStage,
        "_is_new",
        lambda self, partial: is_new(self, partial) and partial.part == 0,
    )


@mutant
def a_journal_shard_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    records = journal.Journal.records

    def without_shards(self: Any, *args: Any) -> Any:
        return [record for record in records(self, *args) if not record[0].startswith(b"s|")]

    patch.setattr(journal.Journal, "records", without_shards)


@mutant
def ids_are_not_restored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dedupe.DedupeWindow, "load", lambda self, entries: None)


@mutant
def ids_are_forgotten_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dedupe.DedupeWindow, "forget_before", lambda self, _: self._segments.clear())


@mutant
def what_comes_home_late_is_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(intake.Intake, "_judge_late", lambda self, *_: None)


@mutant
def only_a_late_arrival_is_late_at_home(patch: pytest.MonkeyPatch) -> None:
    """How old the event was when it arrived is left out."""

    def judge(self: Any, occurred_at_us: int, record: Any, limits: Any) -> Any:
        arrived_ms = intake.judging_time_ms(record.headers, record.timestamp)
        return judge_late(self, arrived_ms * 1000 + limits.max_skew_us, record, limits)

    judge_late = intake.Intake._judge_late
    patch.setattr(intake.Intake, "_judge_late", judge)


@mutant
def the_hour_matters_for_what_is_late_at_home(patch: pytest.MonkeyPatch) -> None:
    """It is not the whole day whose ids must be remembered."""

    class NoDays(int):
        def __rmod__(self, _: int) -> int:
            return 0

    patch.setattr(intake, "US_PER_DAY", NoDays())


@mutant
def duplicates_are_told_by_their_first_arrival(patch: pytest.MonkeyPatch) -> None:
    admit = dedupe.DedupeWindow.admit_words
    patch.setattr(
        dedupe.DedupeWindow,
        "admit_words",
        lambda self, words, times_ms, _: admit(self, words, times_ms, times_ms),
    )


@mutant
def ids_that_came_near_each_other_are_restored_once(patch: pytest.MonkeyPatch) -> None:
    admit = dedupe.DedupeWindow._admit_all

    def near(self: Any, words: Any, times_ms: Any, arrived_ms: Any, _: int) -> Any:
        return admit(self, words, times_ms, arrived_ms, self.horizon_ms)

    patch.setattr(dedupe.DedupeWindow, "_admit_all", near)


@mutant
def a_mark_claims_what_was_only_fetched(patch: pytest.MonkeyPatch) -> None:
    mark = pricing.PriceStage.mark

    def early(self: Any, fetched: Any) -> Any:
        partial = mark(self, fetched)
        if fetched is not None:
            partial.next_offset = max(partial.next_offset, fetched.highwater)
        return partial

    patch.setattr(pricing.PriceStage, "mark", early)


@mutant
def as_of_is_simply_now(patch: pytest.MonkeyPatch) -> None:
    def heartbeat(self: Any) -> Any:
        marks = self._published_marks
        now_ms = self._context.clock.now_ms()
        self._published_marks = {source: (mark[0], now_ms) for source, mark in marks.items()}
        return original(self)

    original = merging.MergeStage._heartbeat
    patch.setattr(merging.MergeStage, "_heartbeat", heartbeat)


@mutant
def a_new_owner_forgets_the_last_heartbeat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "heartbeat_in", lambda record, epoch: None)


@mutant
def versions_start_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "version_of", lambda record: 0)


@mutant
def published_states_are_believed(patch: pytest.MonkeyPatch) -> None:
    """What was published before is not compared with what ought to be there."""
    patch.setattr(accounts.Accounts, "restore_published", lambda self, key, value: None)


@mutant
def periods_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accounts.Accounts, "advance", lambda self, now_ms: None)


@mutant
def the_position_is_not_in_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """The journal is written one flush late."""
    records = journal.Journal.records
    kept: dict[int, Any] = {}

    def late(self: Any, *args: Any) -> Any:
        found = kept.get(id(self), [])
        kept[id(self)] = records(self, *args)
        return found

    patch.setattr(journal.Journal, "records", late)


@mutant
def half_a_nano_rounds_up(patch: pytest.MonkeyPatch) -> None:
    cost_nano = tariffs.Table.cost_nano

    def rounded(self: Any, event: Any) -> Any:
        cost = cost_nano(self, event)
        return None if cost is None else cost + (cost & 1)

    patch.setattr(tariffs.Table, "cost_nano", rounded)


@mutant
def unpriced_is_zero(patch: pytest.MonkeyPatch) -> None:
    cost_nano = tariffs.Table.cost_nano
    patch.setattr(tariffs.Table, "cost_nano", lambda self, event: cost_nano(self, event) or 0)


@mutant
def a_failed_commit_goes_on(patch: pytest.MonkeyPatch) -> None:
    commit = flush_loop.FlushLoop._commit

    async def hopeful(self: Any, gathered: Any) -> None:
        try:
            await commit(self, gathered)
        except Exception:
            for stage, flush in gathered.flushes:
                stage.committed(flush)
            for turn in self._producer._producers:
                turn._producer.failure = None
                turn._producer.is_in_transaction = False

    patch.setattr(flush_loop.FlushLoop, "_commit", hopeful)


@mutant
def the_manifest_comes_first(patch: pytest.MonkeyPatch) -> None:
    write = writer.LedgerWriter.write

    def backwards(self: Any, runs: Any, entries: Any) -> Any:
        client = self._connected()
        found = [
            manifest
            for run in runs
            for manifest in writer.manifests_of(
                run.blocks, run.priced_partition, run.priced_next_offset
            )
        ]
        with writer.ledger_errors(self._address):
            writer.write_manifests(client, found, writer.datetime.now(writer.UTC))
        return write(self, runs, entries)

    patch.setattr(writer.LedgerWriter, "write", backwards)


@mutant
def a_failed_insert_is_taken_for_done(patch: pytest.MonkeyPatch) -> None:
    write = writer.LedgerWriter.write

    def careless(self: Any, runs: Any, entries: Any) -> Any:
        try:
            return write(self, runs, entries)
        except LedgerError:
            return 0

    patch.setattr(writer.LedgerWriter, "write", careless)


@mutant
def blocks_are_cut_wrongly(patch: pytest.MonkeyPatch) -> None:
    """A duplicate is left out of its block's fates."""
    encode = flush.encode_block

    def shorter(block: PricedBlock) -> bytes:
        del block.duplicates[:1]
        return encode(block)

    patch.setattr(flush, "encode_block", shorter)


@mutant
def a_takeover_goes_on_after_its_release(patch: pytest.MonkeyPatch) -> None:
    """What a rebalance takes away while it is being taken over is served nevertheless."""

    async def take_over(self: Any, sources: Any, homes: Any) -> Any:
        return await takeover.take_over(
            self._context, sources, homes, self.board, self._arrived, self._seek
        )

    patch.setattr(flow.Flow, "_take_over", take_over)


@mutant
def the_resolver_does_not_fence(patch: pytest.MonkeyPatch) -> None:
    """Every tenure writes under an id of its own."""
    producer, tenures = resolver.FencedProducer, count()

    def unfenced(client: Any, transactional_id: str, group_id: str) -> Any:
        return producer(client, f"{transactional_id}-{next(tenures)}", group_id)

    patch.setattr(resolver, "FencedProducer", unfenced)


@mutant
def resolved_corrections_are_not_read_back(patch: pytest.MonkeyPatch) -> None:
    async def remember(self: Any) -> None:
        return

    patch.setattr(resolver._Tenure, "_remember_unwritten", remember)


@mutant
def resolved_corrections_are_not_remembered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolver._Tenure, "_remember", lambda self, resolved, written: None)


@mutant
def the_resolver_begins_at_the_start(patch: pytest.MonkeyPatch) -> None:
    """It forgets how far it has come, but not how its records are numbered."""
    read = resolver.read_progress

    async def forgetful(*args: Any) -> Any:
        progress = await read(*args)
        progress.next_offsets.clear()
        return progress

    patch.setattr(resolver, "read_progress", forgetful)


@mutant
def an_event_is_unknown_at_once(patch: pytest.MonkeyPatch) -> None:
    """What was sent before a correction, but is not in the ledger yet, is not waited for."""

    async def taken_in(self: Any, topic: str) -> None:
        return

    patch.setattr(corrections_ledger.LedgerLookups, "taken_in", taken_in)


@mutant
def corrections_are_applied_twice(patch: pytest.MonkeyPatch) -> None:
    """A new owner takes resolved corrections from the start, whatever the table says."""
    begin, take = resolved_log.ResolvedInbox.__init__, pricing.take_resolved

    def from_the_start(self: Any, position: int, arrived: Any) -> None:
        begin(self, 0, arrived)

    class Admits:
        def admit(self, keys: Any, times_ms: Any) -> list[bool]:
            return [True] * len(keys)

    def take_all(records: Any, after: int, totals: Any, known: Any) -> Any:
        return take(records, 0, totals, Admits())  # type: ignore[arg-type]

    patch.setattr(resolved_log.ResolvedInbox, "__init__", from_the_start)
    patch.setattr(pricing, "take_resolved", take_all)


@mutant
def a_correction_replaces_instead_of_adding(patch: pytest.MonkeyPatch) -> None:
    """The resolver works out each entry as if it were the event's first correction."""
    standing = resolver.standing_of

    def first(entries: Any, more: Any, day: str) -> Any:
        return standing([one for one in entries if one.entry.entry_no == 0], (), day)

    patch.setattr(resolver, "standing_of", first)
