"""Reading from ClickHouse what the audit compares: rows, manifests, sums."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.audit.manifests import Manifest
from pipeline.audit.recount.cells import Cells, sum_cells, totals_of
from pipeline.audit.recount.events import COUNTERS
from pipeline.audit.recount.places import home_of
from pipeline.audit.recount.rows import (
    COLUMNS,
    EVENT_BYTES,
    EVENT_NUMBERS,
    EVENT_TEXTS,
    NO_NUMBER,
    PRICE_BYTES,
    PRICE_NUMBERS,
    PRICE_TEXTS,
)
from pipeline.audit.rows import RowDigest, Suspect
from pipeline.audit.tables import Opening

DAILY_LIMIT = 1_000

_EXPRESSIONS = {
    "occurred_at_us": "toUnixTimestamp64Micro(occurred_at)",
    "recorded_at_ms": "toUnixTimestamp64Milli(recorded_at)",
    "self_hosted": "toUInt8(self_hosted)",
    "cache_hit": "toUInt8(cache_hit)",
    "estimated": "toUInt8(estimated)",
    "tags": "mapSort(tags)",
}


def _text(name: str) -> str:
    return f"toString(lengthUTF8({name})), ':', {name}"


def _numbers(names: Iterable[str]) -> str:
    shown = [f"ifNull(toString({_EXPRESSIONS.get(name, name)}), '{NO_NUMBER}')" for name in names]
    return ", ',', ".join(shown)


_TAG_TEXT = (
    "arrayStringConcat(arrayMap((k, v) -> concat(toString(lengthUTF8(k)), ':', k, "
    "toString(lengthUTF8(v)), ':', v), mapKeys(mapSort(tags)), mapValues(mapSort(tags))))"
)
_EVENT_TEXT = f"concat({', '.join(map(_text, EVENT_TEXTS))}, {_TAG_TEXT}, '|', " + (
    f"{_numbers(EVENT_NUMBERS)})"
)
_PRICE_TEXT = f"concat({', '.join(map(_text, PRICE_TEXTS))}, '|', {_numbers(PRICE_NUMBERS)})"
_DIGESTS = f"""
SELECT source_topic, source_partition, source_offset, toFixedString(concat(
    substring(SHA256({_EVENT_TEXT}), 1, {EVENT_BYTES}),
    substring(SHA256({_PRICE_TEXT}), 1, {PRICE_BYTES})), {EVENT_BYTES + PRICE_BYTES})
FROM ledger_entries FINAL
WHERE epoch = {{epoch:UInt32}} AND entry_no = 0
"""
_CORRECTED = f"""
SELECT {", ".join(_EXPRESSIONS.get(name, name) for name in COLUMNS)},
    toInt32(toDate(occurred_at)) AS day, epoch, source_topic, source_partition, source_offset
FROM ledger_entries FINAL
WHERE (toDate(occurred_at), port_id, event_id) IN (
    SELECT toDate(occurred_at), port_id, event_id FROM ledger_entries WHERE entry_no > 0)
ORDER BY day, port_id, event_id, entry_no
"""
_FIRST_RECORDED = """
SELECT port_id, event_id, toUnixTimestamp64Milli(min(recorded_at)) FROM ledger_entries
WHERE entry_no = 0 AND (port_id, event_id) IN {keys:Array(Tuple(String, String))}
GROUP BY port_id, event_id
"""
_GONE_MONTHS = "SELECT DISTINCT month FROM dropped_months FINAL WHERE state != 'kept'"
_KEYS_OF_A_QUERY = 50
_ROWS = f"""
SELECT source_topic, source_partition, source_offset,
    {", ".join(_EXPRESSIONS.get(name, name) for name in COLUMNS)}
FROM ledger_entries FINAL
WHERE epoch = {{epoch:UInt32}} AND source_topic = {{topic:String}}
AND source_partition = {{partition:UInt32}} AND source_offset IN {{offsets:Array(Int64)}}
AND entry_no = 0
ORDER BY source_offset, event_id
"""
_MANIFESTS = """
SELECT partition, first_offset, next_offset, rows, rejected, duplicates, forwarded
FROM sink_manifests FINAL
WHERE epoch = {epoch:UInt32} AND topic = {topic:String}
ORDER BY partition, first_offset, next_offset
"""
_REACHED = """
SELECT partition, max(next_offset) FROM sink_manifests
WHERE epoch = {epoch:UInt32} AND topic = {topic:String} GROUP BY partition
"""
_SCOPE_SUMS = """
SELECT
    scope, toInt32(toDate(occurred_at)) AS day,
    sum(requests), sum(total_tokens), sum(toInt128(ifNull(cost_nano, 0))),
    sumIf(toInt128(ifNull(cost_nano, 0)), billing_scope = 'org'),
    sum(unpriced_requests), sumIf(unpriced_requests, billing_scope = 'org')
FROM ledger_entries FINAL
ARRAY JOIN arrayConcat(
    ['all', concat('port:', port_id)],
    if(organization_id = '', [], [concat('org:', organization_id)]),
    if(group_id = '', [], [concat('group:', group_id)]),
    if(user_id = '', [], [concat('user:', user_id)])) AS scope
WHERE {where} AND toDate(occurred_at) >= toDate({{oldest_day:Int32}})
GROUP BY scope, day
"""
_OLDER = "epoch < {epoch:UInt32}"
_CUT_OFF = (
    "epoch = {epoch:UInt32} AND source_topic = {topic:String} "
    "AND source_partition = {partition:UInt32} AND source_offset < {next_offset:Int64}"
)
_ACCEPTED = f"SELECT count(), sum(unpriced_requests) FROM ledger_entries FINAL WHERE {_CUT_OFF}"
# What left the ledger on purpose. A month that is leaving is gone as soon as it has no entry left.
_LEFT = """
SELECT toUInt64(sum(entries)), sum(unpriced_requests) FROM dropped_months FINAL
WHERE epoch = {epoch:UInt32} AND source_topic = {topic:String}
AND source_partition = {partition:UInt32} AND last_offset < {next_offset:Int64}
AND (state = 'dropped' OR (state = 'leaving' AND month NOT IN (
    SELECT DISTINCT toYYYYMM(occurred_at) FROM ledger_entries
    WHERE toYYYYMM(occurred_at) IN (SELECT month FROM dropped_months))))
"""
_LEFT_MONTHS = """
SELECT month, file, sum(entries), sum(cost_nano) FROM dropped_months FINAL
WHERE state = 'dropped' GROUP BY month, file ORDER BY month
"""
_FORGOTTEN = "SELECT DISTINCT pseudonym FROM forgotten_users"
_PSEUDONYM_KEY = "SELECT key FROM pseudonym_keys ORDER BY created_at, key LIMIT 1"
_OLDER_IDS = """
SELECT port_id, event_id, toUnixTimestamp64Milli(recorded_at) FROM ledger_entries
WHERE epoch < {epoch:UInt32} AND entry_no = 0
AND recorded_at >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
"""
_DIMENSIONS = (
    "port_id", "organization_id", "group_id", "user_id", "service", "feature", "kind", "provider",
    "model", "billing_scope", "service_tier", "currency",
)  # fmt: skip
_SUMMED = ("requests", *COUNTERS, "total_tokens", "unpriced_requests")
_MONEY = ("cost_nano", "audio_nano", "with_cost")
_DAILY_AMOUNTS = (*_SUMMED, "estimated_requests", *_MONEY)
# Both sides in one statement, so that they are of the same moment but for an insert in flight.
_DAILY = f"""
SELECT date, {", ".join(_DIMENSIONS)},
    {", ".join(f"sum(sign * {name}) AS d_{name}" for name in _DAILY_AMOUNTS)}
FROM (
    SELECT date, {", ".join(_DIMENSIONS)}, toInt128(1) AS sign,
        {", ".join(f"toInt128(d.{name}) AS {name}" for name in (*_SUMMED, "estimated_requests"))},
        toInt128(ifNull(d.cost_nano, 0)) AS cost_nano,
        toInt128(d.audio_seconds * 1000000000) AS audio_nano,
        toInt128(isNotNull(d.cost_nano)) AS with_cost
    FROM usage_daily AS d WHERE d.date >= {{first:Date}}
    UNION ALL
    SELECT toDate(l.occurred_at) AS date, {", ".join(_DIMENSIONS)}, toInt128(-1) AS sign,
        {", ".join(f"sum(toInt128(l.{name})) AS {name}" for name in _SUMMED)},
        sumIf(toInt128(l.requests), l.estimated) AS estimated_requests,
        sum(toInt128(ifNull(l.cost_nano, 0))) AS cost_nano,
        sum(toInt128(l.audio_seconds * 1000000000)) AS audio_nano,
        toInt128(max(isNotNull(l.cost_nano))) AS with_cost
    FROM usage_ledger AS l WHERE toDate(l.occurred_at) >= {{first:Date}}
    GROUP BY date, {", ".join(_DIMENSIONS)}
)
GROUP BY date, {", ".join(_DIMENSIONS)}
HAVING {" OR ".join(f"d_{name} != 0" for name in _DAILY_AMOUNTS)}
ORDER BY date, port_id
LIMIT {DAILY_LIMIT}
"""
_DAILY_COUNT = "SELECT count() FROM usage_daily WHERE date >= {first:Date}"


class EntryRow(NamedTuple):
    """An entry by the names of ``COLUMNS``, its day since 1970, and where it says it came from."""

    row: dict[str, Any]
    day: int
    epoch: int
    topic: str
    partition: int
    offset: int

    @property
    def event(self) -> tuple[int, str, str]:
        """Day, port and event id: what its entries share."""
        return self.day, self.row["port_id"], self.row["event_id"]


class LedgerSide:
    """One deployment's ledger as of one epoch of its log, read only. Its methods block."""

    def __init__(self, client: Client, topic: str, epoch: int) -> None:
        self._client = client
        self._topic = topic
        self._epoch = epoch

    def reached(self, topic: str | None = None) -> dict[int, int]:
        """By partition of ``topic``, the events': the highest offset a manifest vouches for."""
        rows = self._client.query(_REACHED, parameters=self._of(topic)).result_rows
        return {int(partition): int(offset) for partition, offset in rows}

    def manifests(self, topic: str | None = None) -> Iterator[Manifest]:
        """The runs of offsets that the ledger says it holds, by partition and first offset."""
        for row in self._stream(_MANIFESTS, self._of(topic)):
            yield Manifest(*(int(value) for value in row))

    def corrected_entries(self) -> Iterator[EntryRow]:
        """All entries of every event that has been corrected, one event after the other."""
        for row in self._stream(_CORRECTED, {}):
            *values, day, epoch, topic, partition, offset = row
            named: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
            named["tags"] = dict(named["tags"])
            yield EntryRow(named, int(day), int(epoch), topic, int(partition), int(offset))

    def first_recorded(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """When events (port, id) that are there first reached Kafka, in ms."""
        found: dict[tuple[str, str], int] = {}
        wanted = sorted(keys)
        for start in range(0, len(wanted), _KEYS_OF_A_QUERY):
            parameters = {"keys": wanted[start : start + _KEYS_OF_A_QUERY]}
            rows = self._client.query(_FIRST_RECORDED, parameters=parameters).result_rows
            found |= {(port_id, event_id): int(at_ms) for port_id, event_id, at_ms in rows}
        return found

    def gone_months(self) -> set[int]:
        """The months whose entries have left, or are leaving."""
        return {int(month) for (month,) in self._client.query(_GONE_MONTHS).result_rows}

    def row_digests(self) -> Iterator[RowDigest]:
        """The first entry of every event of this epoch, in no order."""
        for topic, partition, offset, digest in self._stream(_DIGESTS, self._here):
            yield RowDigest(topic, partition, offset, digest)

    def rows_at(
        self, suspects: Iterable[Suspect]
    ) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
        """The rows at some places (topic, partition, offset), by the names of ``COLUMNS``."""
        places: dict[tuple[str, int], list[int]] = defaultdict(list)
        for suspect in suspects:
            places[suspect.topic, suspect.partition].append(suspect.offset)
        found: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)
        for (topic, partition), offsets in places.items():
            parameters = {
                "epoch": self._epoch, "topic": topic, "partition": partition, "offsets": offsets,
            }  # fmt: skip
            for at_topic, at, offset, *values in self._client.query(
                _ROWS, parameters=parameters
            ).result_rows:
                row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
                row["tags"] = dict(row["tags"])
                found[at_topic, at, offset].append(row)
        return found

    def opening_of_cut_off(self, partition: int, next_offset: int, oldest_day: int) -> Opening:
        """What the ledger holds of this log below an offset; its counts with what left it."""
        parameters = {**self._here, "partition": partition, "next_offset": next_offset}
        accepted = unpriced = 0
        for statement in (_ACCEPTED, _LEFT):
            [counts] = self._client.query(statement, parameters=parameters).result_rows
            accepted, unpriced = accepted + int(counts[0]), unpriced + int(counts[1])
        cells = self._scope_sums(_CUT_OFF, {**parameters, "oldest_day": oldest_day})
        return Opening(cells, accepted, unpriced)

    def left_months(self) -> list[str]:
        """The months that were exported and dropped, and where they are, in words."""
        return [
            f"{month // 100}-{month % 100:02d} was exported and dropped ({entries:,} entries, "
            f"{cost_nano} nano); it is in {file} and was not compared"
            for month, file, entries, cost_nano in self._client.query(_LEFT_MONTHS).result_rows
        ]

    def opening_of_older(self, partitions: int, oldest_day: int) -> dict[int, Cells]:
        """What the ledger holds of older logs, by the home of the scope."""
        found: dict[int, dict[tuple[str, int], Any]] = {home: {} for home in range(partitions)}
        sums = self._scope_sums(_OLDER, {**self._here, "oldest_day": oldest_day})
        for (scope, day), totals in sums.items():
            found[home_of(scope, partitions)][scope, day] = totals
        return dict(found)

    def older_ids(self, since_ms: int) -> Iterator[tuple[str, str, int]]:
        """Port, event id and Kafka time (ms) of accepted events of older logs."""
        for port_id, event_id, at_ms in self._stream(
            _OLDER_IDS, {**self._here, "since_ms": since_ms}
        ):
            yield port_id, event_id, int(at_ms)

    def forgotten(self) -> list[str]:
        """The pseudonyms of users who are forgotten."""
        return [str(name) for (name,) in self._client.query(_FORGOTTEN).result_rows]

    def daily_differences(self, first_day: str) -> list[tuple[dict[str, Any], dict[str, int]]]:
        """Rows of ``usage_daily`` that are not the sums of ``usage_ledger``: place and amounts."""
        found = self._client.query(_DAILY, parameters={"first": first_day}).result_rows
        places = ("date", *_DIMENSIONS)
        return [
            (
                dict(zip(places, row, strict=False)),
                {n: int(v) for n, v in zip(_DAILY_AMOUNTS, row[len(places) :], strict=True) if v},
            )
            for row in found
        ]

    def daily_count(self, first_day: str) -> int:
        """How many rows ``usage_daily`` has from a day on."""
        [(rows,)] = self._client.query(_DAILY_COUNT, parameters={"first": first_day}).result_rows
        return int(rows)

    @property
    def _here(self) -> dict[str, Any]:
        return self._of(None)

    def _of(self, topic: str | None) -> dict[str, Any]:
        return {"epoch": self._epoch, "topic": topic or self._topic}

    def _scope_sums(self, where: str, parameters: Mapping[str, Any]) -> Cells:
        statement = _SCOPE_SUMS.replace("{where}", where).replace("{{", "{").replace("}}", "}")
        return sum_cells(
            {(scope, day): totals_of(int(n) for n in sums)}
            for scope, day, *sums in self._stream(statement, parameters)
        )

    def _stream(self, statement: str, parameters: Mapping[str, Any]) -> Iterator[Any]:
        with self._client.query_row_block_stream(statement, parameters=dict(parameters)) as blocks:
            for block in blocks:
                yield from block


def pseudonym_key(client: Client) -> str:
    """The key of all pseudonyms, hex; for whoever may read it."""
    [(key,)] = client.query(_PSEUDONYM_KEY).result_rows
    return str(key)
