"""The benchmark of the ledger runs to its end on a small ledger."""

import json
import os
import subprocess
import sys

TIMEOUT_S = 360
# As ``tallyport bench ledger`` runs it, but for less: two rounds of the sink, and of each query.
SMALL = """
from pipeline.__main__ import main
from pipeline.bench import ledger, ledger_answers

ledger_answers.REPEATS = 2
for name, value in {"REPEATS": 2, "FRESH_S": 2, "SINK_EVENTS_LEAST": 120_000}.items():
    assert value < getattr(ledger, name)
    setattr(ledger, name, value)
main(["bench", "ledger", "--events", "10000", "--json"])
"""


def test_it_measures_everything_it_names() -> None:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TALLYPORT_")}
    done = subprocess.run(
        [sys.executable, "-c", SMALL],
        env=kept,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["ledger"]
    assert found["events"] == 10_000
    assert found["days"] == 10
    queries = {row["query"].partition(",")[0] for row in found["queries"]}
    assert {"daily_series", "totals", "user_events", "focus", "budgets against actual"} <= queries
    assert all(row["median"] > 0 and row["p95"] >= row["median"] for row in found["queries"])
    paths = {row["path"] for row in found["answers"]}
    assert {"/v1/usage/summary", "/v1/usage/ports", "/v1/usage/users/user-7-3"} <= paths
    assert all(row["median"] > 0 and row["p95"] >= row["median"] for row in found["answers"])
    for name in ("bytes_per_event", "rollup_bytes_per_event", "direct_per_s", "sink_per_s"):
        assert found[name] > 0, name
    assert found["visible_ms"]["max"] >= found["visible_ms"]["median"] > 0
