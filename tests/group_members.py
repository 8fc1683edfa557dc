"""The members of a consumer group that died, taken out of it without a wait for their sessions."""

from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest


async def forget_dead_members(client: Mapping[str, Any], group: str) -> None:
    """Takes every member out of ``group``, as its session timeout would some seconds later.

    ``client`` holds aiokafka's connection arguments. Nobody who lives may be a member.
    """
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        described = await admin.describe_consumer_groups([group])
        members = [member[0] for member in described[0].groups[0][5]]
        coordinator = await admin.find_coordinator(group)
        for member in members:
            await admin._client.send(coordinator, LeaveGroupRequest(group, member))
    finally:
        await admin.close()
