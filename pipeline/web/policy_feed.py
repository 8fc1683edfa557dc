"""The API's own view of the policies in force."""

from collections.abc import Mapping
from typing import Any

from pipeline.core.policies import PolicyTable
from pipeline.stream.policy_log import OnRecord, PolicyTopics
from pipeline.stream.reader import read_to_end
from pipeline.web.log_feed import TableFeed


class PolicyFeed(TableFeed[PolicyTable]):
    """Follows ``budget.policies``, beginning with the valid ones that the workers keep."""

    def __init__(self, client: Mapping[str, Any], topics: PolicyTopics) -> None:
        super().__init__("policies", client, topics.policies)
        self._registry = topics.registry

    async def _begin(self) -> tuple[PolicyTable, OnRecord]:
        table = PolicyTable()
        async for records in read_to_end(self._client, self._registry):
            for record in records:
                table.seed(record.key or b"", record.value)

        def take(offset: int, key: bytes, value: bytes | None) -> None:
            table.apply(offset, key, value)

        return table, take
