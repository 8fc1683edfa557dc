"""``/health/live``, ``/health/ready``, ``/health/pipeline`` and ``/metrics``."""

from collections.abc import Awaitable, Callable, Sequence

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
    part: metrics.Part,
    ready: Probe,
    pipeline: PipelineProbe | None = None,
    live: Probe = list,
    notes: Probe = list,
) -> list[Route]:
    """The routes every part serves. Without ``pipeline`` the part answers for itself there.

    ``live`` tells what only a restart of the process can cure, ``notes`` what somebody should know
    although it is no failure.
    """

    async def is_live(_: Request) -> Response:
        return _answer(await run_in_threadpool(live))

    async def is_ready(_: Request) -> Response:
        return _answer(await run_in_threadpool(ready))

    async def is_advancing(_: Request) -> Response:
        return _answer(await (pipeline() if pipeline else run_in_threadpool(ready)), notes())

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.render(part), media_type=metrics.CONTENT_TYPE)

    return [
        Route("/health/live", is_live),
        Route("/health/ready", is_ready),
        Route("/health/pipeline", is_advancing),
        Route("/metrics", show_metrics),
    ]


def serve_health(
    port: int, part: metrics.Part, ready: Probe = list, live: Probe = list
) -> BackgroundServer:
    """Serve health and metrics of this process on every interface, from a thread.

    The probes are called for each request, in another thread, and must not block. Raises
    ``ConfigurationError`` when the port is in use. Call ``close()`` at the end.
    """
    listener = bind("0.0.0.0", port, "TALLYPORT_HEALTH_PORT")
    return BackgroundServer(Starlette(routes=health_routes(part, ready, live=live)), listener)


def _answer(problems: list[str], notes: Sequence[str] = ()) -> Response:
    noted = {"notes": list(notes)} if notes else {}
    if problems:
        return JSONResponse({"status": "failing", "problems": problems, **noted}, status_code=503)
    return JSONResponse({"status": "ok", **noted})
