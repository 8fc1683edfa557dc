"""The kinds of ids that usage is listed by, and what each is called where."""

from typing import NamedTuple


class IdKind(NamedTuple):
    """``path`` is the plural in paths and answers, ``field`` holds an id, and ``dimension`` groups
    usage by it."""

    path: str
    field: str
    dimension: str


ID_KINDS = {
    "port": IdKind("ports", "port_id", "port"),
    "user": IdKind("users", "user_id", "user"),
    "group": IdKind("groups", "group_id", "group"),
    "org": IdKind("organizations", "organization_id", "organization"),
}
"""By the kind of their scope."""
