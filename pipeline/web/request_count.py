"""Counts what the API answers."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import metrics


class RequestCount:
    """ASGI middleware: one count for each answer, under its status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                metrics.HTTP_REQUESTS.labels(str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
