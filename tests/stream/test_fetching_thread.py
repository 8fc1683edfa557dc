"""The thread that fetches, at its end."""

import asyncio

from pipeline.stream.transport import SliceConsumerThread


def test_a_thread_that_has_ended_by_itself_is_stopped_without_an_error() -> None:
    thread = SliceConsumerThread.__new__(SliceConsumerThread)
    thread.thread_loop = asyncio.new_event_loop()
    thread._stopped = asyncio.Event()
    thread._stopped_set()
    thread.thread_loop.run_until_complete(asyncio.wait_for(thread._stopped.wait(), 60))
    thread.thread_loop.close()
    thread._stopped_set()
