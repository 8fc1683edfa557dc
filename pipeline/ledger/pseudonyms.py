"""Who is forgotten: the pseudonyms that stand for users in the ledger.

A pseudonym is a keyed hash of the id, so the ledger keeps no id and still writes later events of
the same user under the same name. The key is in the ledger, where readers are not let in.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client

from pipeline.ledger.manifests import INSERT_SETTINGS

PREFIX = "forgotten-"
KEY_BYTES = 32
DIGEST_BYTES = 16

COUNT = "SELECT count() FROM forgotten_users"
_FORGOTTEN = "SELECT DISTINCT pseudonym FROM forgotten_users"
_KEY = "SELECT key FROM pseudonym_keys ORDER BY created_at, key LIMIT 1"
_RENAME = (
    "ALTER TABLE ledger_entries UPDATE user_id = {pseudonym:String} WHERE user_id = {user:String}"
)
_RENAMED = {"mutations_sync": 2}


@dataclass(frozen=True)
class Pseudonyms:
    """``key`` is empty while nobody was ever forgotten."""

    key: bytes = b""
    forgotten: frozenset[str] = frozenset()

    def of(self, user_id: str) -> str:
        """The pseudonym of an id, forgotten or not."""
        digest = blake2b(user_id.encode(), key=self.key, digest_size=DIGEST_BYTES)
        return f"{PREFIX}{digest.hexdigest()}"

    def renamed(self, user_ids: Iterable[str]) -> dict[str, str]:
        """Those of ``user_ids`` that are forgotten, with what is written in their place."""
        if not self.forgotten:
            return {}
        found = {user_id: self.of(user_id) for user_id in set(user_ids) if user_id}
        return {user: name for user, name in found.items() if name in self.forgotten}

    def applied(self, entries: pa.Table) -> pa.Table:
        """The entries with the pseudonyms of forgotten users in the place of their ids."""
        if not self.forgotten:
            return entries
        at = entries.schema.get_field_index("user_id")
        users = pc.call_function("dictionary_encode", [entries.column(at).combine_chunks()])
        names = users.dictionary.to_pylist()
        renamed = self.renamed(names)
        if not renamed:
            return entries
        shown = pa.array([renamed.get(name, name) for name in names], pa.string())
        return entries.set_column(at, entries.schema.field(at), shown.take(users.indices))


def load_pseudonyms(client: Client) -> Pseudonyms:
    """Everybody who is forgotten."""
    forgotten = frozenset(str(name) for (name,) in client.query(_FORGOTTEN).result_rows)
    if not forgotten:
        return Pseudonyms()
    return Pseudonyms(_key(client), forgotten)


def refreshed(client: Client, known: Pseudonyms) -> Pseudonyms:
    """``known``, or what there is now when somebody was forgotten since."""
    [(count,)] = client.query(COUNT).result_rows
    return known if count == len(known.forgotten) else load_pseudonyms(client)


def remember_forgotten(client: Client, user_id: str) -> str:
    """Registers a user as forgotten; returns the pseudonym. Again it changes nothing."""
    key = _key(client)
    if not key:
        row = [secrets.token_hex(KEY_BYTES), datetime.now(UTC)]
        client.insert(
            "pseudonym_keys", [row], column_names=("key", "created_at"), settings=INSERT_SETTINGS
        )
        key = _key(client)
    pseudonym = Pseudonyms(key).of(user_id)
    if pseudonym not in load_pseudonyms(client).forgotten:
        client.insert(
            "forgotten_users",
            [[pseudonym, datetime.now(UTC)]],
            column_names=("pseudonym", "forgotten_at"),
            settings=INSERT_SETTINGS,
        )
    return pseudonym


def rename_entries(client: Client, renamed: Mapping[str, str]) -> None:
    """Puts pseudonyms in the place of ids in the entries that are there; returns when it is done.

    The days of the entries must be marked.
    """
    for user_id, pseudonym in renamed.items():
        parameters = {"user": user_id, "pseudonym": pseudonym}
        client.command(_RENAME, parameters=parameters, settings=_RENAMED)


def _key(client: Client) -> bytes:
    row = client.query(_KEY).first_row
    return bytes.fromhex(str(row[0])) if row else b""
