"""A week whose report is known."""

from datetime import date

from pipeline.reports.figures import Compared, Spent, WeeklyFigures, total_of

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
NAMES = {"user:u1": 'Anna "<img src=x onerror=alert(1)>" & Co'}
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
)
