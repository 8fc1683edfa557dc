"""Lists of inputs that lead to one rare case each, where drawn ones come to it by chance."""

from tests.sim.oracle import DAY_MS, home_of
from tests.sim.scenario import STARTS, Input, Scenario
from tests.sim.world import Knobs

PARTITIONS = 2
PORT, OTHER_PORT = "harbor-1", "harbor-2"
HOME = home_of(PORT, PARTITIONS)
AWAY_S = 2.0
"""So long nobody serves after ``kill``: what is sent away from home then waits there."""

kill: Input = {"do": "kill", "after_s": 0.0, "worker": 0, "point": None, "passes": 1}
kill |= {"restart_s": AWAY_S}


def scenario(*inputs: Input, workers: int = 1) -> Scenario:
    """A run with one sink."""
    knobs = Knobs(seed=1, start_ms=STARTS["midday"], partitions=PARTITIONS)
    return Scenario(knobs, workers, 1, inputs)


def event(event_id: str, after_s: float = 0.5, **changes: object) -> Input:
    """An event of ``PORT``, at home unless ``to`` says otherwise."""
    counts = {"in": 7, "cached": 0, "out": 3, "searches": 0, "flag": "", "billing": "org"}
    names = {"user": "u1", "org": "o1", "group": "g1", "provider": "acme", "model": "m-1"}
    head = {"do": "event", "after_s": after_s, "id": event_id, "port": PORT, "age_s": 0, "to": None}
    return {**head, **names, **counts, **changes}


def days_pass(days: float, ms: int = 0) -> Input:
    """Every clock goes on at once."""
    return {"do": "skip", "after_s": 0.01, "ms": round(days * DAY_MS) + ms}


def sent_twice_and_late_home(away_ms: int) -> Scenario:
    """An event that counted, and its copy, which waits for ``away_ms`` away from home."""
    return scenario(
        event("e0", 3.0),
        {**kill, "after_s": 3.0},
        event("e0", 0.01, to=1 - HOME),
        days_pass(0, away_ms),
    )


def sent_again_old_and_late_home() -> Scenario:
    """The copy came four days after the first and waits for six: not long, but too long."""
    return scenario(
        event("e0", 3.0),
        {**kill, "after_s": 3.0},
        days_pass(4),
        event("e0", 0.01, age_s=4 * DAY_MS // 1000, to=1 - HOME),
        days_pass(6),
    )


def sent_again_the_same_day_and_late_home() -> Scenario:
    """The copy says a later time of the day. Counted, it would take the first one's ledger row."""
    return scenario(
        event("e0", 3.0),
        {**kill, "after_s": 3.0},
        days_pass(0.4),
        event("e0", 0.01, to=1 - HOME),
        days_pass(8.8),
    )


def again_after_the_horizon_at_home() -> Scenario:
    """An id comes again elsewhere after four days, and home after ten, when it is a new one.

    It is remembered with the time at which it came, also by who serves next.
    """
    return scenario(
        event("e0", 3.0),
        {**kill, "after_s": 3.0},
        days_pass(4),
        event("e0", 0.01, to=1 - HOME),
        days_pass(6),
        {**kill, "after_s": 5.0},
        days_pass(2),
        event("e0", 4.0),
    )


def old_partials_come_last() -> Scenario:
    """Each worker hears of the other's totals twice, and then of the first of them again."""
    policy = {"scope": "all", "unit": "tokens", "period": "day", "hard_cap": 400}
    events = [
        event(name, after_s, port=port)
        for name, after_s in (("e0", 3.0), ("e1", 0.0), ("e2", 3.0), ("e3", 0.0))
        for port in (PORT, OTHER_PORT)
    ]
    again = {"do": "stale", "after_s": 3.0, "topic": "partials", "slices": 1}
    return scenario(
        {"do": "policy", "after_s": 0.0, "policy": policy},
        *events,
        *({**again, "worker": worker} for worker in range(2)),
        workers=2,
    )


DIRECTED: dict[str, Scenario] = {
    "what_comes_home_late_is_counted": sent_twice_and_late_home(10 * DAY_MS),
    "only_a_late_arrival_is_late_at_home": sent_again_old_and_late_home(),
    "the_hour_matters_for_what_is_late_at_home": sent_again_the_same_day_and_late_home(),
    "duplicates_are_told_by_their_first_arrival": again_after_the_horizon_at_home(),
    "ids_that_came_near_each_other_are_restored_once": again_after_the_horizon_at_home(),
    "stale_partials_are_applied": old_partials_come_last(),
}
"""The mutants that chance seldom or never meets, and the run that does."""
