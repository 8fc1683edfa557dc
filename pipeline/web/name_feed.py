"""The API's own view of the names of ids: followed from the log's beginning, for ever."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import KafkaError

from pipeline.core.errors import TallyportError
from pipeline.core.names import Name, NameTable
from pipeline.core.scopes import format_scope
from pipeline.stream.name_log import NameTopics
from pipeline.stream.policy_log import PolicyTail
from pipeline.web.gate import Caller

log = logging.getLogger(__name__)

RETRY_S = 2.0
_POLL_S = 0.02


class NameFeed:
    """``table`` is None until the names have been read once.

    Nothing else depends on names: while they cannot be read, ids are shown without them.
    """

    def __init__(self, client: Mapping[str, Any], topics: NameTopics) -> None:
        self.table: NameTable | None = None
        self._client = dict(client)
        self._topics = topics
        self._tail: PolicyTail | None = None
        self._trouble: str | None = "names have not been read yet"

    def problems(self) -> list[str]:
        """Why names cannot be told now."""
        return [self._trouble] if self._trouble else []

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

    async def run(self) -> None:
        """Follows the names; after a failure from the beginning, beside the last table."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TallyportError) as error:
                self._trouble = f"names: {' '.join(str(error).split())[:200]}"
                log.warning("%s", self._trouble)
            await asyncio.sleep(RETRY_S)

    async def wait_for(self, offset: int, timeout_s: float) -> None:
        """Returns once the record at ``offset`` has been taken, or after ``timeout_s``."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self._tail is None or self._tail.position <= offset:
            if asyncio.get_running_loop().time() > deadline_s:
                return
            await asyncio.sleep(_POLL_S)

    async def _follow(self) -> None:
        table = NameTable()

        def take(_: int, key: bytes, value: bytes | None) -> None:
            table.apply(key, value)

        tail = PolicyTail(self._client, self._topics.id_names, take)
        await tail.start()
        try:
            await tail.confirmed
            self.table, self._tail, self._trouble = table, tail, None
            await tail.wait()
        finally:
            self._tail = None
            await tail.stop()


def _says(name: Name, wanted: str) -> bool:
    texts = (name.display_name, name.email, format_scope(name.scope))
    return any(text is not None and wanted in text.casefold() for text in texts)
