"""The API's own view of the names of ids."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.core.names import Name, NameTable
from pipeline.core.scopes import format_scope
from pipeline.stream.name_log import NameTopics
from pipeline.stream.policy_log import OnRecord
from pipeline.web.gate import Caller
from pipeline.web.log_feed import TableFeed


class NameFeed(TableFeed[NameTable]):
    """Nothing else depends on names: while they cannot be read, ids are shown without them."""

    def __init__(self, client: Mapping[str, Any], topics: NameTopics) -> None:
        super().__init__("names", client, topics.id_names)

    def shown(self, scopes: Iterable[str], caller: Caller) -> dict[str, dict[str, Any]]:
        """The names of those of ``scopes`` (as JSON has them) that the caller may know of."""
        names = self.table.names if self.table is not None else {}
        return {
            scope: {"display_name": name.display_name, "email": name.email}
            for scope in scopes
            if (name := names.get(scope)) is not None and caller.may_see_id(scope)
        }

    def found(self, kind: str, text: str, caller: Caller) -> set[str]:
        """The ids of a kind in whose name ``text`` occurs, upper and lower case alike."""
        wanted = text.casefold()
        names = self.table.names if self.table is not None else {}
        return {
            scope.partition(":")[2]
            for scope, name in names.items()
            if scope.startswith(f"{kind}:") and caller.may_see_id(scope) and _says(name, wanted)
        }

    async def _begin(self) -> tuple[NameTable, OnRecord]:
        table = NameTable()

        def take(_: int, key: bytes, value: bytes | None) -> None:
            table.apply(key, value)

        return table, take


def _says(name: Name, wanted: str) -> bool:
    texts = (name.display_name, name.email, format_scope(name.scope))
    return any(text is not None and wanted in text.casefold() for text in texts)
