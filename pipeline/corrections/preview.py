"""What corrections change, per port and day, before anything is written."""

from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.core.corrections import Entry, Standing
from pipeline.core.money import format_nano
from pipeline.core.windows import format_ms


@dataclass(slots=True)
class DayChange:
    """The events of one port on one day that change: what they amount to before and after."""

    count: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    cost_before_nano: int = 0
    cost_after_nano: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0

    def add(self, other: "DayChange") -> None:
        """Adds those of another port or day."""
        for name in _AMOUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "events": self.count,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "tokens_delta": self.tokens_after - self.tokens_before,
            "cost_before": format_nano(self.cost_before_nano),
            "cost_after": format_nano(self.cost_after_nano),
            "cost_delta": format_nano(self.cost_after_nano - self.cost_before_nano),
            "unpriced_before": self.unpriced_before,
            "unpriced_after": self.unpriced_after,
        }


_AMOUNTS = tuple(one.name for one in fields(DayChange))


@dataclass(slots=True)
class Preview:
    """Adds up changes. Memory grows with ports and days, not with events."""

    days: dict[tuple[str, str], DayChange] = field(default_factory=dict[tuple[str, str], DayChange])

    def add(self, before: Standing, entry: Entry) -> None:
        """Takes one event that changes by ``entry``."""
        event = before.event
        day = format_ms(event.occurred_at_us // 1000)[:10]
        change = self.days.setdefault((day, event.port_id), DayChange())
        change.count += 1
        tokens = event.input_tokens + event.output_tokens
        change.tokens_before += tokens
        change.tokens_after += tokens + entry.event.input_tokens + entry.event.output_tokens
        cost_nano = before.cost_nano or 0
        change.cost_before_nano += cost_nano
        change.cost_after_nano += cost_nano + (entry.cost_nano or 0)
        unpriced = int(before.cost_nano is None)
        change.unpriced_before += unpriced
        change.unpriced_after += unpriced + entry.unpriced_requests

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """One row for each day and port, in their order, the first ``most``; money as decimal
        strings."""
        return [
            {"date": day, "port_id": port_id, **change.to_json()}
            for (day, port_id), change in sorted(self.days.items())[:most]
        ]

    def total(self) -> dict[str, Any]:
        """The sums of all rows."""
        whole = DayChange()
        for change in self.days.values():
            whole.add(change)
        return whole.to_json()
