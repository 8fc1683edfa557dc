"""Users whose ids the ledger no longer carries: what it writes in their place."""

from dataclasses import dataclass
from hashlib import blake2b

from pipeline.audit.recount.events import Reading


@dataclass(frozen=True)
class Pseudonyms:
    """``forgotten`` are the pseudonyms of users that were forgotten, ``key`` that of the hash."""

    key: bytes = b""
    forgotten: frozenset[str] = frozenset()

    def name_of(self, user_id: str) -> str:
        """What stands in the ledger for an id; the id itself unless it is forgotten."""
        if not self.forgotten or not user_id or user_id in self.forgotten:
            return user_id
        digest = blake2b(user_id.encode(), key=self.key, digest_size=16).hexdigest()
        name = f"forgotten-{digest}"
        return name if name in self.forgotten else user_id

    def renamed(self, event: Reading) -> Reading:
        """The event as the ledger shows it."""
        user_id = event.texts["user_id"]
        name = self.name_of(user_id)
        return event if name == user_id else event._replace(texts={**event.texts, "user_id": name})

    def scope_of(self, scope: str) -> str:
        """The scope as the ledger shows it."""
        kind, colon, ident = scope.partition(":")
        return f"user:{self.name_of(ident)}" if colon and kind == "user" else scope

    def hides(self, scope: str) -> bool:
        """Whether the scope is of a forgotten user, under either name."""
        return self.scope_of(scope).removeprefix("user:") in self.forgotten
