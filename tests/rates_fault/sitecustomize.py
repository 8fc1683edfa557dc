"""On a worker's PYTHONPATH this lets the end of the rates go unconfirmed while the file
``RATES_FAULT`` exists, as a broker does that does not answer."""

import asyncio
import os

_file = os.environ.get("RATES_FAULT", "")


def _hold_back_rates() -> None:
    from pipeline.stream.rate_log import RateTail

    take = RateTail._take

    async def waiting(self: RateTail, consumer: object) -> None:
        while os.path.exists(_file):  # noqa: ASYNC110, ASYNC240, PTH110
            await asyncio.sleep(0.1)
        await take(self, consumer)

    RateTail._take = waiting


if _file:
    _hold_back_rates()
