"""A week whose report is known."""

from datetime import UTC, date, datetime

from pipeline.core.budgets import state_of
from pipeline.core.forecast import BudgetOutlook, Forecast
from pipeline.core.policies import Policy
from pipeline.core.windows import window
from pipeline.reports.figures import Budgets, Compared, Spent, WeeklyFigures, total_of

N = 10**9

KINDS = (
    Compared(
        "llm",
        Spent(1_234 * N + 567_000_000, 8_123, 41_000_000),
        Spent(1_000 * N, 7_000, 30_000_000),
    ),
    Compared("embedding", Spent(12 * N + 345_678_901, 90_000, 9_000_000), Spent(24 * N, 1, 1)),
    Compared("stt", Spent(2_340_000, 3), Spent()),
    Compared("image", Spent(None, 4, 0, 4), Spent(None, 2, 0, 2)),
    Compared("tts", Spent(0, 40), Spent(0, 3)),
)
USERS = (
    Compared("u1", Spent(400 * N, 10, 20), Spent(100 * N, 1, 1)),
    Compared("u<script>alert(1)</script>", Spent(300 * N, 10, 20), Spent(600 * N, 1, 1)),
    Compared("long-" + "x" * 60, Spent(N, 10, 20), Spent(N, 1, 1)),
)
NAMES = {
    "user:u1": 'Anna "<img src=x onerror=alert(1)>" & Co',
    "port:harbor-1": "North <b>Quay</b> & Sons",
}
AS_OF_MS = int(datetime(2026, 11, 23, 7, tzinfo=UTC).timestamp()) * 1000
CAP_DAY_MS = int(datetime(2026, 11, 28, 3, tzinfo=UTC).timestamp()) * 1000


def outlook(
    scope: str, unit: str, period: str, used: int, hard_cap: int, found: Forecast, unpriced: int = 0
) -> BudgetOutlook:
    policy = Policy(scope, unit, period, hard_cap=hard_cap)
    span = window(period, AS_OF_MS)
    return BudgetOutlook(state_of(policy, scope, span, used, unpriced, AS_OF_MS), found)


BUDGETS = Budgets(
    AS_OF_MS,
    (
        outlook("user:<i>", "tokens", "week", 1_320_000, 10**6, Forecast("reached")),
        outlook(
            "port:harbor-1", "cost", "month", 34_100_000_000, 55 * N,
            Forecast("on-date", CAP_DAY_MS, 4_100_000_000, 7), 3,
        ),
        outlook("all", "cost", "rolling-30d", 5 * N, 1_000 * N, Forecast("too-uneven", days=7)),
        outlook("org:o1", "tokens", "day", 0, 500, Forecast("too-few-days")),
    ),
)  # fmt: skip
FIGURES = WeeklyFigures(
    currency="USD",
    first_day=date(2026, 11, 16),
    end_day=date(2026, 11, 23),
    rolling_first_day=date(2026, 10, 25),
    rolling_end_day=date(2026, 11, 24),
    total=total_of(KINDS),
    rolling=Spent(4_321 * N, 300_000, 120_000_000, 9),
    by_payer=(
        Compared("org", Spent(1_000 * N), Spent()),
        Compared("user", Spent(246 * N), Spent()),
    ),
    kinds=KINDS,
    users=USERS,
    other_currencies=("EUR",),
    budgets=BUDGETS,
)
