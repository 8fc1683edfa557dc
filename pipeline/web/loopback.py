"""The guard of an API without keys: only this machine's own programs and pages may ask."""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class LoopbackOnly:
    """ASGI middleware: answers 403 to a foreign ``Host`` (DNS rebinding) or ``Origin`` (other
    people's pages in a local browser)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(Headers(scope=scope), scope.get("scheme", "http"))
        if refusal is None:
            await self._app(scope, receive, send)
            return
        body = {"type": "about:blank", "title": "Forbidden", "status": 403, "detail": refusal}
        response = JSONResponse(body, 403, media_type="application/problem+json")
        await response(scope, receive, send)


def _refusal(headers: Headers, scheme: str) -> str | None:
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _names_loopback(hosts[0]):
        return "without a keys file only a loopback Host is answered"
    if any(origin != f"{scheme}://{hosts[0]}" for origin in headers.getlist("origin")):
        return "without a keys file no foreign Origin is answered"
    return None


def _names_loopback(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
