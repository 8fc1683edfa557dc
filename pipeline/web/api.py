"""The HTTP API of a deployment: its parts, put together."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import uvloop
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from pipeline.core.errors import TallyportError
from pipeline.core.event_codec import TimeLimits
from pipeline.core.policies import Policy
from pipeline.kafka import client_kwargs
from pipeline.notices.budget_alerts import BudgetAlerts
from pipeline.notices.budget_lines import OverLines
from pipeline.notices.destinations import Destinations
from pipeline.notices.notifier import Notifier, Watch
from pipeline.notices.post import Post
from pipeline.notices.rejected_share import RejectedShare
from pipeline.notices.scheduled_audit import ScheduledAudit
from pipeline.notices.stalls import Stalls
from pipeline.notices.unpriced_models import UnpricedModels
from pipeline.notices.usage_line import UsageLine
from pipeline.notices.weekly_mail import WeeklyMail
from pipeline.settings import Settings, variable
from pipeline.stream.change_log import note_change
from pipeline.stream.topics import Topics
from pipeline.web.bodies import InFlight
from pipeline.web.budgets import BudgetEndpoints
from pipeline.web.changes import ChangesEndpoint
from pipeline.web.event_log import EventLog
from pipeline.web.gate import Gate
from pipeline.web.guarded_http import allow_connections
from pipeline.web.health import health_routes
from pipeline.web.id_usage import IdUsageEndpoints
from pipeline.web.ingest import EventsEndpoint, Intake
from pipeline.web.key_ring import KeyRing, open_ring
from pipeline.web.ledger_reads import LedgerReads
from pipeline.web.loopback import LoopbackOnly
from pipeline.web.name_feed import NameFeed
from pipeline.web.names import NameEndpoints
from pipeline.web.openapi import openapi_routes
from pipeline.web.page_files import page_routes
from pipeline.web.policy_feed import PolicyFeed
from pipeline.web.prices import PriceEndpoints
from pipeline.web.problems import Problem, handle_error
from pipeline.web.progress import Progress
from pipeline.web.rate_feed import RateFeed
from pipeline.web.rejected import RejectedEndpoints
from pipeline.web.reports import ReportEndpoints
from pipeline.web.request_count import RequestCount
from pipeline.web.run_endpoints import RunEndpoints
from pipeline.web.runs import Runs
from pipeline.web.server import Tls, address, bind, serve
from pipeline.web.state_feed import StateFeed
from pipeline.web.state_stream import Streams
from pipeline.web.states import StateEndpoints
from pipeline.web.traces import TracesEndpoint
from pipeline.web.usage import UsageEndpoints
from pipeline.web.user_usage import UserUsageEndpoint
from pipeline.web.whoami import WhoamiEndpoint

log = logging.getLogger(__name__)

IN_FLIGHT_BYTES = 64 * 1024 * 1024
MAX_STREAMS = 1_000
READY_TIMEOUT_S = 20.0
GC_YOUNG_OBJECTS = 50_000
_POLL_S = 0.05


class Api:
    """Everything that one API process consists of.

    Owns: which part knows which. ``app`` is served; while it is up, all parts follow their logs.
    """

    def __init__(self, settings: Settings, ring: KeyRing | None) -> None:
        client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
        in_flight = InFlight(IN_FLIGHT_BYTES)
        self._ring = ring
        self.progress = Progress(client, topics)
        self.events = EventLog(client, topics.events, in_flight)
        over = OverLines()
        self.states = StateFeed(client, topics.state, over.take)
        self.policies = PolicyFeed(client, topics)
        self.notifier = self._notifier(settings, client, topics, over)
        self.rates = RateFeed(client, topics.rates, settings.price_lead_s, settings.currency)
        self.names = NameFeed(client, topics)
        self.ledger = LedgerReads(settings)
        self.runs = Runs(settings, partial(note_change, client, topics, "run"))
        gate = Gate(ring)
        self.streams = Streams(self.states, MAX_STREAMS, gate.still_admits)
        limits = TimeLimits.of(settings.max_event_age_days, settings.max_future_skew_s)
        intake = Intake(self.events, limits)
        self._routes = [
            *health_routes(
                "api", self.problems, self.progress.problems, notes=self.notifier.problems
            ),
            *openapi_routes(),
            *EventsEndpoint(intake, in_flight).routes(gate),
            *TracesEndpoint(intake, in_flight).routes(gate),
            *StateEndpoints(self.states, self.rates, self.streams, gate).routes(),
            *BudgetEndpoints(client, topics, self.policies).routes(gate),
            *PriceEndpoints(
                client,
                topics,
                self.rates,
                lead_s=settings.price_lead_s,
                currency=settings.currency,
            ).routes(gate),
            *ChangesEndpoint(client, topics.changes, ring).routes(gate),
            *ReportEndpoints(settings, client, topics.notices).routes(gate),
            *NameEndpoints(client, topics, self.names).routes(gate),
            *RejectedEndpoints(client, topics.rejected).routes(gate),
            *RunEndpoints(self.runs).routes(gate),
            *WhoamiEndpoint(settings).routes(gate),
            *self._usage_routes(gate, settings.currency),
            *page_routes(),
        ]
        self.app = self._application()

    def _usage_routes(self, gate: Gate, currency: str) -> list[Route]:
        """What the ledger answers; lists of ids before the ids, or ``users`` would be one."""
        ledger, names, policies = self.ledger, self.names, self.policies
        return [
            *UsageEndpoints(ledger, names, policies, currency).routes(gate),
            *IdUsageEndpoints(ledger, names, policies, self.states, currency).routes(gate),
            *UserUsageEndpoint(ledger, names, currency).routes(gate),
        ]

    def problems(self) -> list[str]:
        """What keeps this process from doing its own work."""
        keys = self._ring.problems() if self._ring is not None else []
        return [
            *self.progress.ready(),
            *self.events.problems(),
            *self.states.problems(),
            *self.policies.problems(),
            *self.rates.problems(),
            *keys,
        ]

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns when all parts do their work, or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.problems():  # noqa: ASYNC110 (several parts, each with its own trouble)
                    await asyncio.sleep(_POLL_S)

    def _notifier(
        self, settings: Settings, client: dict[str, Any], topics: Topics, over: OverLines
    ) -> Notifier:
        destinations = Destinations(settings)
        budgets = BudgetAlerts(
            over,
            destinations,
            settings.currency,
            policies=self._policies_to_tell_by,
            names=self._names,
            now_ms=self.states.now_ms,
        )
        report = WeeklyMail(settings, destinations, self._names, self._policies_in_force)
        watches: tuple[Watch, ...] = (budgets, report)
        if destinations.all:
            watches += (
                UsageLine(settings),
                UnpricedModels(settings),
                RejectedShare(client, topics),
                Stalls(self.progress.stalled),
                ScheduledAudit(settings.audit_hours),
            )
        post = Post(settings, topics.prefix)
        return Notifier(client, topics, destinations, post, watches)

    def _policies_to_tell_by(self) -> Mapping[str, Policy] | None:
        """None while states are read anew: what they pass through then is history."""
        return None if self.states.problems() else self._policies_in_force()

    def _policies_in_force(self) -> Mapping[str, Policy] | None:
        """None until they have been read."""
        table = self.policies.table
        return None if table is None else table.policies

    def _names(self) -> Mapping[str, str]:
        """Display names by scope, such as ``user:u1``."""
        named = self.names.table.names if self.names.table is not None else {}
        return {scope: one.display_name for scope, one in named.items() if one.display_name}

    def _application(self) -> Starlette:
        middleware = [Middleware(RequestCount)]
        if self._ring is None:
            middleware.append(Middleware(LoopbackOnly))
        handlers = (Problem, TallyportError, HTTPException, Exception)
        return Starlette(
            routes=self._routes,
            middleware=middleware,
            lifespan=self._follow,
            exception_handlers=dict.fromkeys(handlers, handle_error),
        )

    @contextlib.asynccontextmanager
    async def _follow(self, _: Starlette) -> AsyncGenerator[None]:
        runs: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self.progress.run,
            self.events.run,
            self.states.run,
            self.policies.run,
            self.rates.run,
            self.notifier.run,
            self.names.run,
        )
        tasks = [asyncio.create_task(_kept(run)) for run in runs]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.runs.close()
            self.ledger.close()


async def _kept(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Each part tries again by itself after what can be expected; anything else is logged."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("a part of the API failed; it is started again")
            await asyncio.sleep(1)


def run_api(settings: Settings, tls: Tls | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; prints ``ready api=http(s)://HOST:PORT`` once it takes work.

    Raises ``ConfigurationError`` where it would be open to the network without keys, a file is not
    readable or the port is in use.
    """
    ring = open_ring(settings)
    allow_connections()
    listener = bind(settings.api_host, settings.api_port, variable("api_port"))
    scheme = "http" if tls is None else "https"

    async def run() -> None:
        api = Api(settings, ring)
        serving = asyncio.create_task(serve(api.app, listener, tls=tls, on_stop=api.streams.close))
        ready = asyncio.create_task(api.wait_ready())
        await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
        _tune_collector()
        if not serving.done():
            for problem in api.problems():
                log.warning("%s", problem)
            print(f"ready api={scheme}://{address(listener)}", flush=True)
        ready.cancel()
        await serving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0


def _tune_collector() -> None:
    # The built-in book is large and stays; what a request makes holds no cycles. There is no use in
    # walking through the former after every 700 of the latter.
    gc.freeze()
    gc.set_threshold(GC_YOUNG_OBJECTS, 50, 100)
