"""Reading and writing the names of ids on Kafka, each change with its entry in the change log.

The log of changes is kept for ever and names are personal, so it says who named which id and when,
and which fields were set before and after, but not the names themselves.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiokafka.errors import KafkaError

from pipeline.core.errors import TallyportError
from pipeline.core.names import Name, NameTable, name_json
from pipeline.core.scopes import format_scope
from pipeline.stream.change_log import ChangeLogError, ChangeTopics, Planned, commit_changes
from pipeline.stream.reader import read_to_end


class NameTopics(ChangeTopics, Protocol):
    """The full names of the topics that hold names and their changes."""

    @property
    def id_names(self) -> str: ...


class NameLogError(TallyportError):
    """The names could not be read or written."""


async def load_names(client: Mapping[str, Any], topics: NameTopics) -> NameTable:
    """Reads all names once, to where the log ends at the call."""
    table = NameTable()
    async for records in read_to_end(client, topics.id_names):
        for record in records:
            table.apply(record.key or b"", record.value)
    return table


async def edit_name(
    client: Mapping[str, Any],
    topics: NameTopics,
    who: str,
    scope: str,
    decide: Callable[[Name | None], Name | None],
) -> int:
    """Writes the name that ``decide`` makes of the one ``scope`` has; None and an empty one
    delete it. Returns the record's offset, -1 when nothing was to be written.

    Nobody else writes between ``decide`` and that; what it raises ends it. Raises
    ``NameLogError``.
    """

    async def plan() -> list[Planned]:
        table = await load_names(client, topics)
        before = table.names.get(format_scope(scope))
        after = decide(before)
        after = None if after is None or after.is_empty else after
        if before == after:
            return []
        key = (after or before or Name(scope)).key.encode()
        value = None if after is None else name_json(after)
        return [Planned(topics.id_names, key, value, "name", _which(before), _which(after))]

    try:
        offsets = await commit_changes(client, topics, who, plan)
    except (ChangeLogError, KafkaError) as error:
        raise NameLogError(f"{topics.id_names}: {error}") from error
    return offsets[-1] if offsets else -1


def _which(name: Name | None) -> dict[str, Any] | None:
    """Which fields are set."""
    if name is None:
        return None
    return {
        "display_name": name.display_name is not None,
        "email": name.email is not None,
    }
