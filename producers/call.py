"""One call to a provider: from the question whether it may be made to what it used."""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.core.decision import Verdict
from producers.reservations import Hold

if TYPE_CHECKING:
    from producers.meter import Meter
    from producers.streams import AsyncMetered, Metered


class BudgetExceeded(Exception):
    """A budget does not allow the call; ``verdict`` says which, and how much is left of it."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict

    def __str__(self) -> str:
        verdict = self.verdict
        if verdict.scope is None:
            return f"{verdict.reason}: budgets are {verdict.freshness}"
        return (
            f"{verdict.reason}: {verdict.scope} {verdict.unit} {verdict.period}, "
            f"{verdict.remaining} left until {verdict.resets_at}"
        )

    @property
    def reason(self) -> str:
        return self.verdict.reason

    @property
    def scope(self) -> str | None:
        return self.verdict.scope

    @property
    def remaining(self) -> Any:
        return self.verdict.remaining

    @property
    def resets_at(self) -> str | None:
        return self.verdict.resets_at


class Estimate:
    """What a call may use. ``is_cost_given`` where the caller named the cost, which then stands."""

    __slots__ = ("cost_nano", "is_cost_given", "tokens")

    def __init__(self, tokens: int, cost_nano: int, is_cost_given: bool) -> None:
        self.tokens = tokens
        self.cost_nano = cost_nano
        self.is_cost_given = is_cost_given


class Call:
    """A call that was asked for. Made by ``Meter.begin`` and ``Meter.guard``.

    ``verdict`` says whether it may be made. It is used from any thread, and ends with ``record``
    or ``release``; until then it counts with its estimate against its budgets in this process.
    """

    __slots__ = ("_fields", "_hold", "_meter", "estimate", "is_recorded", "is_released", "verdict")

    def __init__(
        self,
        meter: "Meter",
        fields: dict[str, Any],
        verdict: Verdict,
        hold: Hold | None,
        estimate: Estimate,
    ) -> None:
        self._meter = meter
        self._fields = fields
        self._hold = hold
        self.verdict = verdict
        self.estimate = estimate
        self.is_recorded = False
        self.is_released = False

    def record(self, response: object = None, /, **fields: Any) -> None:
        """Reports what the call used: a provider's response, a stream's chunks, or event fields.

        Never raises and never waits. Whatever the call began with is inherited. Once it returns,
        the event outlives this process. Several records are several events.
        """
        self.is_recorded = True
        hold, self._hold = self._hold, None
        self._meter.report(self._fields, response, fields, hold, self.estimate)

    def release(self) -> None:
        """The call was not made, or used nothing."""
        self.is_released = True
        hold, self._hold = self._hold, None
        self._meter.let_go(hold)

    def stream(self, chunks: Any) -> "Metered | AsyncMetered":
        """Passes a provider's stream on, chunk by chunk, and records what it used at its end.

        A stream that is left early is recorded as estimated.
        """
        from producers.streams import metered

        return metered(self, chunks)


class Guard:
    """A block around a call; see ``Meter.guard``."""

    __slots__ = ("_asked", "_call", "_meter")

    def __init__(self, meter: "Meter", asked: dict[str, Any]) -> None:
        self._meter = meter
        self._asked = asked
        self._call: Call | None = None

    def __enter__(self) -> Call:
        call = self._meter.begin(**self._asked)
        if not call.verdict.allowed:
            raise BudgetExceeded(call.verdict)
        self._call = call
        return call

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        call = self._call
        if call is not None and not call.is_recorded and not call.is_released:
            call.release()
            self._meter.count_unrecorded()

    async def __aenter__(self) -> Call:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)
