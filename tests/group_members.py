"""The members of a consumer group, and how those that died leave it without a wait."""

from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest


async def members_of(client: Mapping[str, Any], group: str) -> list[str]:
    """The ids of the members of ``group``; ``client`` holds aiokafka's connection arguments."""
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        return await _members(admin, group)
    finally:
        await admin.close()


async def forget_dead_members(client: Mapping[str, Any], group: str) -> None:
    """Takes every member out of ``group``, as its session timeout would some seconds later.

    ``client`` holds aiokafka's connection arguments. Nobody who lives may be a member.
    """
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        coordinator = await admin.find_coordinator(group)
        for member in await _members(admin, group):
            await admin._client.send(coordinator, LeaveGroupRequest(group, member))
    finally:
        await admin.close()


async def _members(admin: AIOKafkaAdminClient, group: str) -> list[str]:
    [described] = await admin.describe_consumer_groups([group])
    return [member[0] for member in described.groups[0][5]]
