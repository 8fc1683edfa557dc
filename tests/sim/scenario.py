"""What happens in one run: a list of inputs, faults among them, drawn from a seed.

An input is plain JSON: ``{"do": NAME, "after_s": SECONDS since the one before, …}``. A run is a
function of its knobs and this list, so a list from which some inputs are left out is a run, too.
"""

import json
import random
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from tests.sim.world import Knobs

Input = dict[str, Any]

PORTS = ("harbor-1", "harbor-2", "a|b%", "p:4")
USERS = ("u1", "u2", "usér|3", "")
ORGS = ("o1", "o2", "")
GROUPS = ("g1", "", "")
MODELS = (
    ("acme", "m-1"),
    ("acme", "m-1"),
    ("acme", "m-1"),
    ("acme", "m-2"),
    ("acme", "x-9"),
    ("nobody", "z"),
    ("speaches", "w"),
)
POISONS = (
    "null",
    "no-json",
    "no-utf8",
    "array",
    "missing",
    "wrong-type",
    "out-of-range",
    "bad-timestamp",
    "inconsistent",
    "large",
)
PERIODS = ("day", "week", "month", "rolling-30d")
POINTS = (
    "price-taken",
    "price-begun",
    "price-sent",
    "price-acked",
    "price-offsets",
    "price-committed",
    "merge-computed",
)
SINK_POINTS = (
    "sink-before-mark",
    "sink-after-mark",
    "sink-before-insert",
    "sink-after-insert",
    "sink-before-manifest",
    "sink-after-manifest",
    "sink-before-commit",
    "sink-after-commit",
)
RESOLVER_POINTS = (
    "resolver-taken",
    "resolver-waits",
    "resolver-judged",
    "price-begun",
    "price-sent",
    "price-acked",
    "price-offsets",
    "resolver-committed",
)
CORRECTED_SHARE = 0.4
_CORRECTION = {
    "correction_id": "bad",
    "port_id": "harbor-1",
    "event_id": "e0",
    "kind": "void",
    "reason": "r",
}
BAD_CORRECTIONS = (
    None,
    "{no json",
    "[1]",
    *(
        json.dumps({**_CORRECTION, **changes})
        for changes in (
            {"reason": None},
            {"event_id": 5},
            {"kind": "undo"},
            {"reason": ""},
            {"kind": "reprice"},
            {"kind": "amend"},
            {"kind": "amend", "counts": {}},
            {"kind": "amend", "counts": []},
            {"kind": "amend", "counts": {"bogus": 1}},
            {"kind": "amend", "counts": {"input_tokens": -1}},
            {"kind": "amend", "counts": {"input_tokens": "7"}},
        )
    ),
)
DAY_S = 86_400


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


STARTS = {
    "midday": _ms("2026-11-18T12:00:00"),
    "day's end": _ms("2026-11-18T23:59:56"),
    "week's end": _ms("2026-11-22T23:59:56"),
    "month's end": _ms("2026-11-30T23:59:56"),
    "year's end": _ms("2026-12-31T23:59:56"),
}


@dataclass(frozen=True)
class Scenario:
    """One run to be. ``workers`` and ``sinks`` run from the start."""

    knobs: Knobs
    workers: int
    sinks: int
    inputs: tuple[Input, ...]

    def to_json(self) -> str:
        """Everything the run needs."""
        lines = ",\n ".join(json.dumps(one) for one in self.inputs)
        head = json.dumps(
            {"knobs": asdict(self.knobs), "workers": self.workers, "sinks": self.sinks}
        )
        return f'{head[:-1]}, "inputs": [\n {lines}\n]}}'

    @classmethod
    def from_json(cls, text: str) -> "Scenario":
        body = json.loads(text)
        knobs = Knobs(**body["knobs"])
        return cls(knobs, body["workers"], body["sinks"], tuple(body["inputs"]))


def scenario_of(seed: int) -> Scenario:
    """The run of one seed."""
    rng = random.Random(f"scenario/{seed}")
    partitions = rng.choice((1, 2, 2, 2, 3))
    knobs = Knobs(
        seed=seed,
        start_ms=STARTS[rng.choice(tuple(STARTS))],
        partitions=partitions,
        latency_s=rng.choice((0.001, 0.004, 0.02)),
        slow_marker=rng.choice((0.0, 0.05, 0.3)),
        cut=rng.choice((0.0, 0.3, 0.8)),
        is_small=rng.random() < 0.6,
    )
    drawn = _Drawn(rng, partitions)
    drawn.setup()
    for _ in range(rng.randint(15, 45)):
        drawn.event()
    drawn.changes()
    drawn.faults()
    rng = random.Random(f"corrections/{seed}")
    if rng.random() < CORRECTED_SHARE:
        drawn.corrections(rng)
    return Scenario(knobs, rng.choice((1, 2, 2, 3)), rng.choice((1, 1, 2)), tuple(drawn.inputs))


class _Drawn:
    """Collects the inputs of one scenario; faults go anywhere between the events."""

    def __init__(self, rng: random.Random, partitions: int) -> None:
        self.rng = rng
        self.partitions = partitions
        self.inputs: list[Input] = []
        self._events: list[Input] = []
        self._policies: list[dict[str, Any]] = []
        self._rates = 0

    # -- before the first event ---------------------------------------------------

    def setup(self) -> None:
        self._put(self._rate("m-1", backdated=True))
        if self.rng.random() < 0.5:
            self._put(self._rate("m-*", backdated=True))
        for _ in range(self.rng.randint(1, 4)):
            self._put(self._policy())

    def _put(self, one: Input, at: int | None = None) -> None:
        self.inputs.insert(len(self.inputs) if at is None else at, one)

    # -- events ---------------------------------------------------

    def event(self) -> None:
        rng = self.rng
        after_s = rng.choice((0.0, 0.0, 0.01, 0.05, 0.2, 0.5))
        kind = rng.random()
        if kind < 0.07:
            poison = {"do": "poison", "after_s": after_s, "kind": rng.choice(POISONS)}
            self._put({**poison, "to": rng.randrange(self.partitions)})
        elif kind < 0.22 and self._events:
            again = dict(rng.choice(self._events))
            if rng.random() < 0.5:
                again |= self._counts()
            again |= {"after_s": after_s, "to": self._misroute()}
            self._put(again)
        else:
            one = self._event(after_s)
            self._events.append(one)
            self._put(one)

    def _event(self, after_s: float) -> Input:
        rng = self.rng
        provider, model = rng.choice(MODELS)
        return {
            "do": "event",
            "after_s": after_s,
            "id": f"e{len(self._events)}",
            "port": rng.choice(PORTS),
            "user": rng.choice(USERS),
            "org": rng.choice(ORGS),
            "group": rng.choice(GROUPS),
            "provider": provider,
            "model": model,
            "billing": "user" if rng.random() < 0.2 else "org",
            "age_s": rng.choice(
                (0, 0, 0, 0, 0, 1, 5, DAY_S, 3 * DAY_S, 6.9 * DAY_S, 8 * DAY_S, -200, -400)
            ),
            "to": self._misroute(),
            **self._counts(),
        }

    def _counts(self) -> Input:
        rng = self.rng
        inputs, outputs = rng.choice((0, 7, 1_000, 333_333)), rng.choice((0, 3, 500))
        return {
            "in": inputs,
            "cached": rng.randint(0, inputs) if rng.random() < 0.3 else 0,
            "out": outputs,
            "searches": 1 if rng.random() < 0.1 else 0,
            "flag": rng.choice(("", "", "", "", "", "self_hosted", "cache_hit")),
        }

    def _misroute(self) -> int | None:
        return self.rng.randrange(self.partitions) if self.rng.random() < 0.15 else None

    # -- what users change ---------------------------------------------------

    def changes(self) -> None:
        for _ in range(self.rng.randint(0, 5)):
            self._put(self._change(), self.rng.randint(0, len(self.inputs)))

    def _change(self) -> Input:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.35:
            return self._policy(again=rng.random() < 0.5)
        if kind < 0.5 and self._policies:
            policy = rng.choice(self._policies)
            return {"do": "delete-policy", "after_s": 0.1, "policy": policy}
        if kind < 0.6 and self._policies:
            policy = {**rng.choice(self._policies)}
            broken = rng.choice(({"soft_cap": 9, "hard_cap": 5}, {"hard_cap": -1}, {"unit": "eur"}))
            return {"do": "break-policy", "after_s": 0.1, "policy": policy, "broken": broken}
        if kind < 0.75:
            return self._rate(rng.choice(("m-1", "m-2", "*")), backdated=True)
        if kind < 0.9 or not self._rates:
            return self._rate(rng.choice(("m-1", "x-?", "m-*")), backdated=False)
        withdrawn = f"r{rng.randrange(self._rates)}"
        return {"do": "withdraw", "after_s": 0.1, "rate_id": withdrawn, "in_s": 2.5}

    def _policy(self, again: bool = False) -> Input:
        rng = self.rng
        if again and self._policies:
            policy = dict(rng.choice(self._policies))
        else:
            scope = rng.choice(
                ("all", "port:*", "port:harbor-1", "port:a|b%", "user:*", "user:u1", "org:o1",
                 "org:*", "group:*")
            )  # fmt: skip
            unit = rng.choice(("tokens", "cost"))
            policy = {"scope": scope, "unit": unit, "period": rng.choice(PERIODS)}
            self._policies.append(dict(policy))
        cap = rng.choice((0, 50, 2_000, 400_000))
        policy["hard_cap"] = cap if policy["unit"] == "tokens" else str(cap / 1000)
        if rng.random() < 0.3:
            policy["soft_cap"] = cap // 2 if policy["unit"] == "tokens" else str(cap / 2000)
        if rng.random() < 0.2:
            policy.pop("hard_cap")
        elif rng.random() < 0.2:
            amount = 1_000 if policy["unit"] == "tokens" else "1.5"
            policy["extra"] = {"amount": amount, "in_s": rng.choice((1, 4, 3 * DAY_S))}
        if rng.random() < 0.1:
            policy["enabled"] = False
        return {"do": "policy", "after_s": rng.choice((0.0, 0.3)), "policy": policy}

    def _rate(self, model: str, *, backdated: bool) -> Input:
        rng = self.rng
        self._rates += 1
        rate: dict[str, Any] = {
            "rate_id": f"r{self._rates - 1}",
            "provider": rng.choice(("acme", "acme", "*")) if model == "*" else "acme",
            "model": model,
        }
        if rng.random() < 0.15:
            rate["multiplier"] = rng.choice(("0.88", "1.5", "0"))
        else:
            prices = {
                "input_tokens": rng.choice(("0.0005", "1", "2.5")),
                "output_tokens": rng.choice(("2", "0.333333")),
                "cached_input_tokens": "0.0001",
            }
            names = rng.sample(tuple(prices), rng.randint(1, 3))
            rate["per_million"] = {name: prices[name] for name in names}
            if rng.random() < 0.2:
                rate["per_unit"] = {"request": "0.000000001", "web_searches": "0.01"}
        in_s = -30 * DAY_S if backdated else rng.choice((2.2, 4.0, 0.5))
        return {"do": "rate", "after_s": 0.05, "rate": rate, "in_s": in_s, "backdated": backdated}

    # -- corrections ---------------------------------------------------

    def corrections(self, rng: random.Random) -> None:
        """Corrections anywhere between the rest, most of them of a few events; and faults."""
        targets = [(one["port"], one["id"]) for one in rng.sample(self._events, 3)]
        targets = [*targets[:1] * 3, *targets, (rng.choice(PORTS), "never")]
        places = {port: rng.randrange(3) if rng.random() < 0.2 else None for port in PORTS}
        sent: list[Input] = []
        for number in range(rng.randint(3, 12)):
            if sent and rng.random() < 0.2:
                one = {**rng.choice(sent)}
                if rng.random() < 0.5:
                    one |= self._kind_of_correction(rng)
            else:
                port, event = rng.choice(targets)
                one = {"do": "correct", "id": f"c{number}", "port": port, "event": event}
                one |= {"to": places[port], "dated": rng.random() < 0.3}
                one |= self._kind_of_correction(rng)
            one["after_s"] = rng.choice((0.0, 0.02, 0.3, 1.0))
            sent.append(one)
            begin = self._position_of(one["port"], one["event"]) if rng.random() < 0.85 else 0
            self._put(one, rng.randint(begin, len(self.inputs)))
        for _ in range(rng.randint(0, 2)):
            bad = {"do": "correct-badly", "after_s": 0.0, "value": rng.choice(BAD_CORRECTIONS)}
            self._put({**bad, "to": rng.randrange(3)}, rng.randint(0, len(self.inputs)))
        for _ in range(rng.choice((0, 1, 2, 3, 4))):
            for one in rng.choice(_CORRECTION_FAULTS)(rng):
                at = rng.randint(len(self.inputs) // 4, len(self.inputs) * 3 // 4)
                self._put({"after_s": rng.choice((0.0, 0.3)), **one}, at)

    def _position_of(self, port: str, event_id: str) -> int:
        """Where the event first stands, 0 for one that is never sent."""
        return next(
            (
                at
                for at, one in enumerate(self.inputs)
                if one["do"] == "event" and (one["port"], one["id"]) == (port, event_id)
            ),
            0,
        )

    def _kind_of_correction(self, rng: random.Random) -> Input:
        kind = rng.choice(("void", "amend", "amend", "amend", "reprice", "reprice"))
        more: dict[str, Any] = {}
        if kind == "amend":
            inputs = rng.choice((0, 9, 2_000, 444_444))
            counts = {"input_tokens": inputs, "cached_input_tokens": min(inputs, 3)}
            counts |= {"output_tokens": rng.choice((0, 11))}
            names = rng.sample(tuple(counts), rng.randint(1, 3))
            more["counts"] = {name: counts[name] for name in names}
        elif kind == "reprice":
            rates = [f"r{n}" for n in range(self._rates + 1)]
            rate_id = rng.choice((*rates, *rates, "self-hosted", "book:speaches"))
            more["rate_id"] = f"{rate_id}*{rng.choice(rates)}" if rng.random() < 0.1 else rate_id
        if rng.random() < 0.1:
            more["currency"] = rng.choice(("USD", "EUR"))
        return {"kind": kind, "more": more}

    # -- faults ---------------------------------------------------

    def faults(self) -> None:
        rng = self.rng
        drawers = rng.choice(_PROFILES)
        for _ in range(rng.randint(1, 5)):
            one = rng.choice(drawers)(rng)
            at = rng.randint(len(self.inputs) // 6, len(self.inputs))
            self._put({"after_s": rng.choice((0.0, 0.02, 0.3)), **one}, at)


def _worker(rng: random.Random) -> int:
    return rng.randrange(4)


def _kill(rng: random.Random) -> Input:
    point = rng.choice((None, *POINTS, *POINTS))
    return {
        "do": "kill",
        "worker": _worker(rng),
        "point": point,
        "passes": rng.choice((1, 1, 2, 4)),
        "restart_s": rng.choice((0.0, 0.3, 2.0)),
    }


def _kill_later(rng: random.Random) -> Input:
    return {**_kill(rng), "point": None}


def _freeze(rng: random.Random) -> Input:
    return {"do": "freeze", "worker": _worker(rng), "for_s": rng.choice((0.2, 1.0, 2.5, 4.0))}


def _freeze_at(rng: random.Random) -> Input:
    point = rng.choice(POINTS)
    return {**_freeze(rng), "do": "freeze-at", "point": point, "passes": rng.choice((1, 2))}


def _rebalance(rng: random.Random) -> Input:
    return {"do": rng.choice(("rebalance", "join", "leave")), "worker": _worker(rng)}


def _slices(rng: random.Random) -> Input:
    return {
        "do": rng.choice(("drop", "stale")),
        "worker": _worker(rng),
        "topic": rng.choice(("events", "partials")),
        "slices": rng.randint(1, 3),
    }


def _outage(rng: random.Random) -> Input:
    return {"do": "outage", "for_s": rng.choice((0.3, 2.0, 9.0))}


def _lost(rng: random.Random) -> Input:
    return {
        "do": "lose-answer",
        "worker": _worker(rng),
        "kind": rng.choice(("produce", "produce", "commit", "commit", "offsets")),
        "is_carried_out": rng.random() < 0.6,
    }


def _clock(rng: random.Random) -> Input:
    return {
        "do": "clock",
        "worker": _worker(rng),
        "ms": rng.choice((DAY_S, -DAY_S, 3_600, -3_600)) * 1000,
    }


def _broker_clock(rng: random.Random) -> Input:
    return {"do": "broker-clock", "ms": rng.choice((DAY_S, -DAY_S, -DAY_S)) * 1000}


def _skip(rng: random.Random) -> Input:
    return {"do": "skip", "ms": rng.choice((DAY_S, 4 * DAY_S, 10 * DAY_S, 31 * DAY_S)) * 1000}


def _clean(rng: random.Random) -> Input:
    if rng.random() < 0.3:
        return {"do": "retention"}
    return {"do": "compact", "keep": rng.choice((0.0, 0.0, 0.5))}


def _sink_kill(rng: random.Random) -> Input:
    return {
        "do": "kill-sink",
        "worker": _worker(rng),
        "point": rng.choice((None, *SINK_POINTS, *SINK_POINTS)),
        "passes": rng.choice((1, 2)),
        "restart_s": rng.choice((0.0, 1.0)),
    }


def _sink_fault(rng: random.Random) -> Input:
    return rng.choice(
        (
            {"do": "freeze-sink", "worker": _worker(rng), "for_s": rng.choice((0.5, 3.0))},
            {"do": "lose-insert", "table": "ledger_entries", "is_carried_out": rng.random() < 0.6},
            {"do": "lose-insert", "table": "sink_manifests", "is_carried_out": rng.random() < 0.6},
            {"do": "ledger-outage", "for_s": rng.choice((0.5, 3.0))},
            {"do": rng.choice(("rebalance-sinks", "join-sink", "leave-sink")), "worker": 0},
        )
    )


def _resolver_kill(rng: random.Random) -> list[Input]:
    point = rng.choice(RESOLVER_POINTS)
    kill = {"do": "kill-sink", "worker": _worker(rng), "point": point, "passes": 1}
    return [{**kill, "restart_s": rng.choice((0.0, 1.0))}]


def _resolver_sleeps(rng: random.Random) -> list[Input]:
    """With a second sink, so that another one resolves meanwhile."""
    return [
        {"do": "join-sink", "worker": 0},
        {
            "do": "freeze-sink-at",
            "worker": _worker(rng),
            "point": rng.choice(RESOLVER_POINTS),
            "passes": 1,
            "for_s": rng.choice((3.0, 5.0)),
        },
    ]


def _resolver_fault(rng: random.Random) -> list[Input]:
    kind = rng.choice(("produce", "commit"))
    lost = {"do": "lose-sink-answer", "kind": kind, "is_carried_out": rng.random() < 0.6}
    kill = {"do": "kill", "point": "corrections-committed", "passes": 1, "restart_s": 0.3}
    one = rng.choice((lost, kill, {"do": "rebalance-sinks"}, {"do": "ledger-outage", "for_s": 2.0}))
    return [{"worker": _worker(rng), **one}]


_CORRECTION_FAULTS = (_resolver_kill, _resolver_kill, _resolver_sleeps, _resolver_fault)


# Time that goes back, and time that passes for longer than ids are remembered, are not put into
# one run: a clock that is wrong by a day makes the horizon wrong by a day, and nothing can help it.
_COMMON = (_kill, _kill, _freeze, _freeze_at, _rebalance, _slices, _lost, _clean)
_PROFILES = (
    _COMMON,
    (*_COMMON, _outage, _clock),
    (*_COMMON, _skip, _clock),
    (*_COMMON, _broker_clock),
    (_kill, _kill_later, _freeze, _clean, _rebalance),
    (_slices, _rebalance, _freeze, _freeze_at),
    (_sink_kill, _sink_kill, _sink_fault, _sink_fault, _kill, _outage, _clean),
)
