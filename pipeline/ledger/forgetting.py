"""What the ledger does to forget a user: the steps of ``ops.forget`` that are its own."""

from datetime import date
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import Refused
from pipeline.core.scopes import PERIODS, UNITS, record_key
from pipeline.faults import point
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.dropped import LEAVING, registered_months
from pipeline.ledger.pseudonyms import rename_entries

ROLLUPS_BY_USER = ("rollup_daily", "rollup_users", "rollup_charges")

_DAYS = """
SELECT DISTINCT day FROM (
    SELECT toDate(occurred_at) AS day FROM ledger_entries WHERE user_id = {user:String}
    UNION ALL SELECT day FROM rollup_users WHERE user_id = {user:String})
ORDER BY day
"""
_ENTRIES = "SELECT count() FROM ledger_entries FINAL WHERE user_id = {user:String}"
_IN_ROLLUPS = " UNION ALL ".join(
    f"SELECT count() AS left FROM {table} WHERE user_id = {{user:String}}"
    for table in ROLLUPS_BY_USER
)
_DROP = "ALTER TABLE {table} DELETE WHERE user_id = {{user:String}}"
_RECORDS = "policy_records WHERE startsWith(key, {prefix:String})"
_IN_RECORDS = f"SELECT count() FROM {_RECORDS}"
_IN_FORCE = f"""
SELECT count() FROM (SELECT key, argMax(value, (epoch, offset)) AS value FROM {_RECORDS}
GROUP BY key) WHERE value != ''
"""
_DROP_RECORDS = "ALTER TABLE policy_records DELETE WHERE startsWith(key, {prefix:String})"
_SYNC: dict[str, Any] = {"mutations_sync": 2}


def check_forgettable(client: Client) -> None:
    """Raises ``Refused`` while entries are neither in the ledger nor out of it."""
    for known in registered_months(client):
        if known.state == LEAVING:
            raise Refused(
                f"{known.month} is half dropped: run `tallyport export {known.month} --drop` first"
            )


def entries_of(client: Client, user_id: str) -> int:
    """How many entries carry the id."""
    [(count,)] = client.query(_ENTRIES, parameters={"user": user_id}).result_rows
    return int(count)


def rename_user(client: Client, user_id: str, pseudonym: str) -> list[date]:
    """Puts the pseudonym in the place of the id; returns the days that changed.

    Their rollups do not count any more and no longer hold the id either.
    """
    parameters = {"user": user_id}
    days = [day for (day,) in client.query(_DAYS, parameters=parameters).result_rows]
    marks = DayMarks()
    marks.before_change(client, days)
    point("forget-marked")
    rename_entries(client, {user_id: pseudonym})
    point("forget-renamed")
    # Once more: what somebody rolled up while entries were being renamed must not count.
    marks.forget()
    marks.before_change(client, days)
    point("forget-marked-again")
    for table in ROLLUPS_BY_USER:
        client.command(_DROP.format(table=table), parameters=parameters, settings=_SYNC)
        point("forget-rollup")
    return days


def policy_records(client: Client, user_id: str) -> int:
    """How many records of the user's policies the ledger keeps, also of those that are gone."""
    return _policy_count(client, _IN_RECORDS, user_id)


def policies_in_force(client: Client, user_id: str) -> int:
    """How many policies of the user the ledger takes for being in force."""
    return _policy_count(client, _IN_FORCE, user_id)


def drop_policy_records(client: Client, user_id: str) -> None:
    """Drops all that the ledger keeps of the user's policies."""
    client.command(_DROP_RECORDS, parameters=_with_prefix(user_id), settings=_SYNC)


def left_of(client: Client, user_id: str) -> int:
    """How many rows of ledger, rollups and kept policies still carry the id."""
    rolled_up = client.query(_IN_ROLLUPS, parameters={"user": user_id}).result_rows
    in_rollups = sum(int(count) for (count,) in rolled_up)
    return entries_of(client, user_id) + in_rollups + policy_records(client, user_id)


def _policy_count(client: Client, query: str, user_id: str) -> int:
    [(count,)] = client.query(query, parameters=_with_prefix(user_id)).result_rows
    return int(count)


def _with_prefix(user_id: str) -> dict[str, str]:
    """What the keys of all policies of the user begin with."""
    scope, bar, _ = record_key(f"user:{user_id}", UNITS[0], PERIODS[0]).partition("|")
    return {"prefix": scope + bar}
