"""The admin page at ``/``: files of this package, served as they are.

Nothing is built and nothing comes from elsewhere. The page is open to everybody, as it holds
nothing; everything it shows it asks the API for, with the key its reader typed in.
"""

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.web.problems import Problem

START = "index.html"
MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
# No script and no style but the files here, nothing framed, nothing sent elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """The page and its files. Only what is in the package now can ever be asked for."""
    files = {
        entry.name: _File(entry.read_bytes(), MEDIA_TYPES[entry.name.rpartition(".")[2]])
        for entry in resources.files("pipeline.web").joinpath("page").iterdir()
        if entry.name.rpartition(".")[2] in MEDIA_TYPES
    }

    async def start(request: Request) -> Response:
        return files[START].answer(request)

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            raise Problem(404, "there is nothing at this path")
        return found.answer(request)

    return [Route("/", start), Route("/page/{name}", file)]


class _File:
    """One file in memory, with the tag that lets a browser keep it."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._media_type = media_type
        self._headers = {
            **_HEADERS,
            "ETag": f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"',
        }

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it."""
        if self._headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers, media_type=self._media_type)
