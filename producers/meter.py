"""The client SDK's one object: asks whether a call may go ahead, and reports what it used."""

import atexit
import os
import time
import weakref
from collections.abc import Mapping
from contextvars import ContextVar, Token
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.core.decision import NO_POLICY, OFF, Verdict, estimate_cost_nano
from pipeline.core.event_codec import UnknownFields
from pipeline.core.event_fields import FIELDS
from pipeline.core.events import Event
from pipeline.core.rejections import Rejection
from producers.call import Call, Estimate, Guard
from producers.events import nano_of, prepare
from producers.gate import Ids
from producers.notices import Notices
from producers.recording import compose
from producers.reservations import Hold
from producers.runtime import Clock, Runtime
from producers.settings import MeterSettings, read_settings
from producers.stats import LOST_CLOSED, LOST_ERROR, LOST_OFF, Counters, LostReason, MeterStats
from producers.transports.transport import Connect, Transport

DOTENV = Path(".env")
EXIT_S = 5.0
"""How long a process that ends waits for its last events to be sent."""

_OFF = Verdict(allowed=True, reason=NO_POLICY, freshness=OFF)
_SHOWN_FIELDS, _SHOWN_CHARS = 3, 40
_NOTHING = Estimate(0, 0, False)
_NONE: Mapping[str, Any] = {}
Client = TypeVar("Client")


class Meter:
    """Serves threads, asyncio and forked processes alike.

    ``connect`` replaces the transport that ``settings`` name, ``clock`` (monotonic seconds) is
    what freshness goes by. Raises what connecting raises (``KafkaMissing``, ``ValueError`` for a
    URL that is none); ``from_env`` never raises.
    """

    def __init__(
        self,
        settings: MeterSettings,
        connect: Connect | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._connect = connect or _connect_of(settings)
        self._bound: ContextVar[Mapping[str, Any]] = ContextVar("tallyport", default=_NONE)
        self._counters = Counters()
        self._notices = Notices()
        self._lost_as: LostReason = LOST_OFF
        self._runtime: Runtime | None = None
        if self._connect is not None:
            self._start(self._connect)
        _meters.add(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """A meter as the environment (and ``.env``) says: over HTTP where ``TALLYPORT_API_URL`` is
        set, else to Kafka where ``TALLYPORT_KAFKA_BOOTSTRAP`` is, else off. Never raises: where
        something is wrong, one warning says so, and the meter is off where it cannot work.
        """
        trouble: list[str] = []
        try:
            settings, trouble = read_settings(os.environ if environ is None else environ, DOTENV)
            meter = cls(settings)
        except Exception as error:
            trouble.append(f"the meter is off: {error}")
            meter = cls(MeterSettings())
        if meter._runtime is None and not trouble:
            trouble.append(
                "the meter is off: neither TALLYPORT_API_URL nor TALLYPORT_KAFKA_BOOTSTRAP is set"
            )
        if trouble:
            meter._notices.warn("settings", "; ".join(trouble))
        return meter

    # -- asking ----------------------------------------------------------------------------

    def check(
        self,
        *,
        port_id: str | None = None,
        user_id: str | None = None,
        organization_id: str | None = None,
        group_id: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        estimated_tokens: int = 0,
        estimated_cost: Any = None,
    ) -> Verdict:
        """Whether such a call may go ahead, decided in memory; nothing is reserved."""
        runtime = self._runtime
        if runtime is None:
            return _OFF
        bound = self._bound.get()
        if bound:
            port_id = port_id or bound.get("port_id")
            user_id = user_id or bound.get("user_id")
            organization_id = organization_id or bound.get("organization_id")
            group_id = group_id or bound.get("group_id")
            provider = provider or bound.get("provider")
            model = model or bound.get("model")
        cost_nano = 0
        if estimated_cost is not None or type(estimated_tokens) is not int or estimated_tokens < 0:
            estimate = self._estimate(runtime, provider, model, estimated_tokens, estimated_cost)
            estimated_tokens, cost_nano = estimate.tokens, estimate.cost_nano
        elif provider and model and estimated_tokens:
            dearest = runtime.prices.dearest(provider, model)
            cost_nano = estimate_cost_nano(None, estimated_tokens, dearest)
        ids = (port_id, user_id, organization_id, group_id)
        return runtime.gate.check(ids, estimated_tokens, cost_nano)

    def guard(
        self,
        *,
        port_id: str | None = None,
        user_id: str | None = None,
        organization_id: str | None = None,
        group_id: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        estimated_tokens: int = 0,
        estimated_cost: Any = None,
        **fields: Any,
    ) -> Guard:
        """A block (``with`` or ``async with``) around a call; it is given the ``Call``.

        Entering raises ``BudgetExceeded`` where a budget does not allow it. Leaving without a
        record releases what was reserved and counts ``unrecorded``. ``fields`` are further fields
        of the event. ``estimated_cost`` is a decimal string or ``Decimal``.
        """
        asked = {
            "port_id": port_id,
            "user_id": user_id,
            "organization_id": organization_id,
            "group_id": group_id,
            "provider": provider,
            "model": model,
            "estimated_tokens": estimated_tokens,
            "estimated_cost": estimated_cost,
            **fields,
        }
        return Guard(self, asked)

    def begin(
        self, *, estimated_tokens: int = 0, estimated_cost: Any = None, **fields: Any
    ) -> Call:
        """As ``guard`` without a block: look at ``verdict``, then ``record`` or ``release``, later
        and from any thread. Does not raise.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        asked = {**self._bound.get(), **given}
        runtime = self._runtime
        if runtime is None:
            return Call(self, asked, _OFF, None, _NOTHING)
        provider, model = asked.get("provider"), asked.get("model")
        estimate = self._estimate(runtime, provider, model, estimated_tokens, estimated_cost)
        verdict, hold = runtime.gate.admit(
            _ids_of(asked),
            estimate.tokens,
            estimate.cost_nano,
            asked.get("billing_scope") != "user",
        )
        return Call(self, asked, verdict, hold, estimate)

    # -- reporting -------------------------------------------------------------------------

    def record(self, response: object = None, /, **fields: Any) -> None:
        """Reports a call that was not guarded: event fields, a provider's response, or both.

        Never raises and never waits. Once it returns, the event outlives this process; see
        ``stats`` for what was refused or lost.
        """
        self.report(self._bound.get(), response, fields, None, _NOTHING)

    def report(
        self,
        defaults: Mapping[str, Any],
        response: object,
        fields: Mapping[str, Any],
        hold: Hold | None,
        estimate: Estimate,
    ) -> None:
        """Records what ``Call`` and ``record`` were given; for them alone."""
        try:
            composed = compose(defaults, response, fields, estimate.tokens)
            if composed.is_estimated:
                self._counters.add("estimated")
                self._counters.add("unknown_shapes", composed.is_unknown)
            self._submit(composed.fields, hold, estimate)
        except Exception as error:
            self._counters.lose(LOST_ERROR)
            self._notices.warn("error", f"an event was lost: {error!r}")
            self.let_go(hold)

    def let_go(self, hold: Hold | None) -> None:
        """Releases what a call holds."""
        runtime = self._runtime
        if hold is not None and runtime is not None:
            runtime.gate.release(hold)

    def count_unrecorded(self) -> None:
        """A block was left without a record."""
        self._counters.add("unrecorded")

    def bind(self, **fields: Any) -> "Binding":
        """Sets defaults for the current context (thread or task): ids and other event fields.

        They hold from now on; ``with meter.bind(...):`` takes them back at the block's end.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        return Binding(self._bound, {**self._bound.get(), **given})

    def wrap(self, client: Client, **defaults: Any) -> Client:
        """A client of ``openai`` or ``anthropic`` whose calls are guarded and recorded.

        ``defaults`` are what ``guard`` takes. Raises ``TypeError`` for any other client.
        """
        from producers.wrap import wrapped

        return wrapped(self, client, defaults)

    # -- living ----------------------------------------------------------------------------

    def wait_ready(self, timeout_s: float = 10.0) -> bool:
        """Waits until budgets and prices are known here; whether they are. False when off."""
        runtime = self._runtime
        return runtime is not None and runtime.wait_ready(timeout_s)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Waits until everything recorded here has been answered for; whether it has."""
        runtime = self._runtime
        return runtime is None or runtime.courier.flush(timeout_s)

    def close(self, timeout_s: float = EXIT_S) -> bool:
        """Sends what is left and ends; whether all was sent. The rest waits on disk."""
        runtime, self._runtime = self._runtime, None
        if runtime is None:
            return True
        self._lost_as = LOST_CLOSED
        _meters.discard(self)
        return runtime.close(timeout_s)

    @property
    def stats(self) -> MeterStats:
        """What this process has done so far."""
        runtime = self._runtime
        counted: dict[str, Any] = self._counters.snapshot()
        counted["last_trouble"] = self._notices.last
        if runtime is None:
            return MeterStats(transport="off", freshness=OFF, spool="off", **counted)
        gate, spool = runtime.gate, runtime.spool
        return MeterStats(
            transport=self._settings.transport,
            freshness=gate.freshness,
            spool="disk" if spool.is_on_disk else "memory",
            recorded=spool.appended,
            waiting=spool.waiting,
            policies=gate.policies,
            held=gate.held,
            lapsed=gate.lapsed,
            unreadable=gate.unreadable,
            **counted,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside ----------------------------------------------------------------------------

    def _start(self, connect: Connect) -> None:
        self._runtime = Runtime(self._settings, connect, self._clock, self._counters, self._notices)
        self._runtime.start()

    def restart_in_child(self) -> None:
        """After a fork: threads, connections and reservations of its own, counters from 0."""
        runtime, self._runtime = self._runtime, None
        # Another thread of the parent may have held their locks.
        self._counters, self._notices = Counters(), Notices()
        if runtime is None or self._connect is None:
            return
        runtime.abandon()
        try:
            self._start(self._connect)
        except Exception as error:
            self._notices.warn("settings", f"the meter is off after a fork: {error}")

    def _submit(self, fields: Mapping[str, Any], hold: Hold | None, estimate: Estimate) -> None:
        unknown = UnknownFields()
        prepared = prepare(fields, unknown)
        if unknown.count:
            self._counters.add("unknown_fields", unknown.count)
            self._notices.warn("unknown", _unknown_fields(fields))
        if isinstance(prepared, Rejection):
            self._counters.reject(prepared.reason)
            trouble = f"an event was refused: {prepared.reason}: {prepared.detail}"
            self._notices.warn("rejected", trouble)
            self.let_go(hold)
            return
        runtime = self._runtime
        if runtime is None:
            self._counters.lose(self._lost_as)
            return
        held = self._hold_used(runtime, prepared.event, hold, estimate)
        trouble = runtime.courier.submit(prepared.key, prepared.value, held)
        if trouble is not None:
            self._counters.lose(trouble)
            self._notices.warn(trouble, f"an event was lost: {trouble}")
            runtime.gate.release(held)

    def _hold_used(
        self, runtime: Runtime, event: Event, hold: Hold | None, estimate: Estimate
    ) -> Hold:
        """Holds what the event says was used, until the states contain it."""
        tokens = event.input_tokens + event.output_tokens
        if event.self_hosted or event.cache_hit:
            cost_nano = 0
        elif estimate.is_cost_given:
            cost_nano = estimate.cost_nano
        else:
            dearest = runtime.prices.dearest(event.provider, event.model)
            cost_nano = estimate_cost_nano(None, tokens, dearest)
        ids = (event.port_id, event.user_id, event.organization_id, event.group_id)
        org_billed = event.billing_scope == "org"
        if hold is None:
            return runtime.gate.hold(ids, tokens, cost_nano, org_billed)
        return runtime.gate.settle(hold, ids, tokens, cost_nano, org_billed)

    def _estimate(
        self,
        runtime: Runtime,
        provider: str | None,
        model: str | None,
        tokens: Any,
        cost: Any,
    ) -> Estimate:
        """The estimate in both units; what makes no sense counts as none, and is counted."""
        if type(tokens) is not int or tokens < 0:
            tokens = self._sensible(_whole(tokens))
        if cost is not None:
            return Estimate(tokens, self._sensible(nano_of(cost)), True)
        if not tokens or not provider or not model:
            return Estimate(tokens, 0, False)
        dearest = runtime.prices.dearest(provider, model)
        return Estimate(tokens, estimate_cost_nano(None, tokens, dearest), False)

    def _sensible(self, amount: int | None) -> int:
        if amount is None:
            self._counters.add("bad_estimates")
            self._notices.warn("estimate", "an estimate that is no amount was taken as 0")
            return 0
        return amount


class Binding:
    """Defaults that hold in a context; see ``Meter.bind``."""

    def __init__(self, variable: ContextVar[Mapping[str, Any]], fields: Mapping[str, Any]) -> None:
        self._variable = variable
        self._token: Token[Mapping[str, Any]] | None = variable.set(fields)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            self._variable.reset(token)


def _unknown_fields(fields: Mapping[str, Any]) -> str:
    unknown = [name for name, value in fields.items() if name not in FIELDS and value is not None]
    shown = ", ".join(repr(name)[:_SHOWN_CHARS] for name in unknown[:_SHOWN_FIELDS])
    more = len(unknown) - _SHOWN_FIELDS
    shown += f" and {more} more" if more > 0 else ""
    return f"an event has fields that nobody reads: {shown}: a typing error?"


def _ids_of(fields: Mapping[str, Any]) -> Ids:
    get = fields.get
    return get("port_id"), get("user_id"), get("organization_id"), get("group_id")


def _whole(tokens: Any) -> int | None:
    try:
        number = ceil(tokens)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number >= 0 else None


def _connect_of(settings: MeterSettings) -> Connect | None:
    """How to reach the deployment that the settings name; None where they name none."""

    def over_http() -> Transport:
        from producers.transports.http import HttpTransport

        return HttpTransport(settings.api_url or "", settings.api_key)

    def to_kafka() -> Transport:
        from producers.transports.kafka import KafkaTransport, client_settings

        return KafkaTransport(
            client_settings(settings.kafka),
            settings.topic_prefix,
            currency=settings.currency,
            price_lead_s=settings.price_lead_s,
        )

    return {"http": over_http, "kafka": to_kafka}.get(settings.transport)


_meters: weakref.WeakSet[Meter] = weakref.WeakSet()


def _restart_all() -> None:
    for meter in list(_meters):
        meter.restart_in_child()


def _close_all() -> None:
    for meter in list(_meters):
        meter.close()


os.register_at_fork(after_in_child=_restart_all)
atexit.register(_close_all)
