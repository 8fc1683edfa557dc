"""``/health/live``, ``/health/ready``, ``/health/pipeline`` and ``/metrics``."""

from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline import metrics
from pipeline.web.server import BackgroundServer, bind

Probe = Callable[[], list[str]]
"""What is wrong right now, one readable line each; an empty list means all is well."""

PipelineProbe = Callable[[], Awaitable[list[str]]]


def health_routes(
    ready: Probe, pipeline: PipelineProbe | None = None, registry: CollectorRegistry | None = None
) -> list[Route]:
    """The routes every part serves. Without ``pipeline`` the part answers for itself there."""

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def is_ready(_: Request) -> Response:
        return _answer(await run_in_threadpool(ready))

    async def is_advancing(_: Request) -> Response:
        return _answer(await (pipeline() if pipeline else run_in_threadpool(ready)))

    async def show_metrics(_: Request) -> Response:
        return Response(
            metrics.render(registry or metrics.REGISTRY), media_type=metrics.CONTENT_TYPE
        )

    return [
        Route("/health/live", live),
        Route("/health/ready", is_ready),
        Route("/health/pipeline", is_advancing),
        Route("/metrics", show_metrics),
    ]


def serve_health(
    port: int, registry: CollectorRegistry = metrics.REGISTRY, probe: Probe = list
) -> BackgroundServer:
    """Serve health and metrics of this process on every interface, from a thread.

    ``probe`` is called for each request to ``/health/ready``, in another thread, and must not
    block. Raises ``TallyportError`` when the port is in use. Call ``close()`` at the end.
    """
    listener = bind("0.0.0.0", port, "TALLYPORT_HEALTH_PORT")
    return BackgroundServer(Starlette(routes=health_routes(probe, registry=registry)), listener)


def _answer(problems: list[str]) -> Response:
    if problems:
        return JSONResponse({"status": "failing", "problems": problems}, status_code=503)
    return JSONResponse({"status": "ok"})
