"""Drafts of notices for tests."""

from pipeline.notices.notice import Draft, Message

DAY_MS = 86_400_000


def draft(
    name: str, level: int = 0, to: tuple[str, ...] | None = (), keep_until_ms: int = 2**50
) -> Draft:
    """A notice that covers ``name`` at ``level``."""
    message = Message(f"about {name}", f"text of {name}\n", f"<p>{name}</p>", {"type": "test"})
    return Draft(f"{name}|{level}", "test", {name: level}, keep_until_ms, message, to)
