"""The HTTP API of a deployment."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.applications import Starlette
from starlette.middleware import Middleware

from pipeline.core.errors import ConfigurationError
from pipeline.kafka import client_kwargs
from pipeline.settings import Settings, variable
from pipeline.stream.topics import Topics
from pipeline.web.health import health_routes
from pipeline.web.loopback import LoopbackOnly, is_loopback
from pipeline.web.progress import Progress
from pipeline.web.request_count import RequestCount
from pipeline.web.server import address, bind, serve


def create_app(progress: Progress, *, loopback_only: bool) -> Starlette:
    """The application; it follows the logs for as long as it is up."""

    @contextlib.asynccontextmanager
    async def follow(_: Starlette) -> AsyncGenerator[None]:
        task = asyncio.create_task(progress.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    middleware = [Middleware(RequestCount)]
    if loopback_only:
        middleware.append(Middleware(LoopbackOnly))
    routes = health_routes("api", progress.ready, progress.problems)
    return Starlette(routes=routes, middleware=middleware, lifespan=follow)


def run_api(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; prints ``ready api=http://HOST:PORT`` once it listens.

    Raises ``ConfigurationError`` where it would be open to the network without keys, and
    ``TallyportError`` when the port is in use.
    """
    loopback_only = _check_keys(settings)
    listener = bind(settings.api_host, settings.api_port, variable("api_port"))
    topics = Topics(settings.topic_prefix)
    progress = Progress(client_kwargs(settings), topics)
    print(f"ready api=http://{address(listener)}", flush=True)
    asyncio.run(serve(create_app(progress, loopback_only=loopback_only), listener))
    return 0


def _check_keys(settings: Settings) -> bool:
    """Whether the API stands without a keys file, and so on loopback only."""
    if settings.api_keys_file is None:
        if not is_loopback(settings.api_host):
            raise ConfigurationError(
                f"{variable('api_host')} must be a loopback address such as 127.0.0.1 "
                f"while {variable('api_keys_file')} is not set"
            )
        return True
    if not settings.api_keys_file.is_file():
        raise ConfigurationError(f"{variable('api_keys_file')} no file at {settings.api_keys_file}")
    return False
