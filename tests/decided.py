"""What was committed just now, as every reader sees it.

A commit is answered before its markers have reached every partition that it wrote to. Until then
whoever asks one of these where it ends, committed records only, is told that it ends before them.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.stream.reader import record_ends


async def until_decided(client: Mapping[str, Any], *topics: str) -> None:
    """Returns once all that stands in the topics by now is known to be committed or aborted.

    ``client`` holds aiokafka's connection arguments.
    """
    for topic in topics:
        await record_ends(client, topic)
