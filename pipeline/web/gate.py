"""Who asks, and whether they may: keys, roles, ports and rate limits in front of every route."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.scopes import scope_id, scope_kind
from pipeline.web.key_file import ADMIN, INGEST, READ, Key
from pipeline.web.key_ring import KeyRing
from pipeline.web.problems import Problem, too_many
from pipeline.web.rate_limit import RateLimits, parse_rate

REPORTERS: Final = frozenset({INGEST, ADMIN})
"""May send what was used."""
ASKERS: Final = frozenset({INGEST, READ, ADMIN})
"""May ask whether a call may go ahead, and see what that is decided by."""
READERS: Final = frozenset({READ, ADMIN})
"""May see what was used."""
ADMINS: Final = frozenset({ADMIN})
"""May change policies and prices."""


class Caller(msgspec.Struct, frozen=True):
    """Who asks. ``ports`` None means every port."""

    name: str
    role: str
    ports: frozenset[str] | None = None
    key_id: str = ""
    rate: str | None = None
    user_rate: str | None = None

    def may_see_port(self, port_id: str) -> bool:
        """Whether the port is among its own."""
        return self.ports is None or port_id in self.ports

    def may_see(self, scope: str) -> bool:
        """Whether it may know of a scope (in its internal form).

        A key with ports sees these alone, and the wildcard that holds for ports without a policy.
        """
        if self.ports is None or scope == "port:*":
            return True
        return scope_kind(scope) == "port" and scope_id(scope) in self.ports

    def may_see_id(self, scope: str) -> bool:
        """As ``may_see``, for the scope of one id as JSON shows it, where ``*`` is an id."""
        kind, _, port_id = scope.partition(":")
        return self.ports is None or (kind == "port" and port_id in self.ports)

    @property
    def only_port(self) -> str | None:
        """The one port the key is for."""
        return next(iter(self.ports)) if self.ports is not None and len(self.ports) == 1 else None


LOCAL: Final = Caller("local", ADMIN)
"""Whoever asks where there is no keys file: a program of this machine."""

Handler = Callable[[Request, Caller], Awaitable[Response]]


class Gate:
    """Makes routes that only open for the right callers."""

    def __init__(self, ring: KeyRing | None, limits: RateLimits | None = None) -> None:
        self._ring = ring
        self._limits = limits or RateLimits()

    def route(
        self,
        path: str,
        handler: Handler,
        allowed: frozenset[str],
        methods: Sequence[str] = ("GET",),
    ) -> Route:
        """A route for callers whose role is in ``allowed``."""

        async def guarded(request: Request) -> Response:
            return await handler(request, self.admit(request, allowed))

        return Route(path, guarded, methods=list(methods))

    def admit(self, request: Request, allowed: frozenset[str]) -> Caller:
        """Who asks. Raises ``Problem`` 401, 403 or 429."""
        caller = self._caller(request)
        if caller.role not in allowed:
            raise Problem(
                403, f"a key with role {caller.role} may not do this; {_one_of(allowed)} may"
            )
        self._limit(("key", caller.key_id), caller.rate, f"key {caller.name}")
        return caller

    def still_admits(self, caller: Caller) -> bool:
        """Whether one that was admitted before would be the same now: its key is in use, with the
        same rights."""
        if self._ring is None:
            return caller == LOCAL
        key = self._ring.with_id(caller.key_id)
        return key is not None and caller_of(key) == caller

    def limit_user(self, caller: Caller, user_id: str) -> None:
        """Counts a request for one user. Raises ``Problem`` 429."""
        if user_id:
            name = ("user", caller.key_id, user_id)
            self._limit(name, caller.user_rate, f"key {caller.name} for one user")

    def _limit(self, name: tuple[str, ...], rate: str | None, who: str) -> None:
        if rate is None:
            return
        wait_s = self._limits.wait_s(name, parse_rate(rate), time.monotonic())
        if wait_s > 0:
            raise too_many(f"{who} may ask {rate}", wait_s)

    def _caller(self, request: Request) -> Caller:
        if self._ring is None:
            return LOCAL
        given = request.headers.getlist("authorization")
        scheme, _, text = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        key = self._ring.find(text.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            told = "this key is not in use" if given else "a key is needed"
            raise Problem(
                401,
                f"{told}: Authorization: Bearer KEY",
                headers={"WWW-Authenticate": 'Bearer realm="tallyport"'},
            )
        return caller_of(key)


def caller_of(key: Key) -> Caller:
    """The caller that a key makes of whoever shows it."""
    ports = frozenset(key.ports) if key.ports else None
    return Caller(f"key:{key.name}", key.role, ports, key.id, key.rate, key.user_rate)


def _one_of(allowed: frozenset[str]) -> str:
    return " or ".join(sorted(allowed))
