"""A process that tells people of one thing: ``python -m tests.notices.teller`` with settings."""

import asyncio
import os

from pipeline.kafka import client_kwargs
from pipeline.notices.book import NoticeBook
from pipeline.notices.destinations import Destinations
from pipeline.notices.notice import Draft
from pipeline.notices.notifier import Notifier
from pipeline.notices.post import Post
from pipeline.settings import load_settings
from pipeline.stream.topics import Topics
from tests.notices.drafts import draft


class One:
    name = "one"
    every_s = 0.05

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        return [draft("a")]


async def main() -> None:
    settings = load_settings(os.environ)
    topics = Topics(settings.topic_prefix)
    post = Post(settings, topics.prefix)
    await Notifier(client_kwargs(settings), topics, Destinations(settings), post, (One(),)).run()


if __name__ == "__main__":
    asyncio.run(main())
