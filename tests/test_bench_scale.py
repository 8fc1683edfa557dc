"""The benchmark of scale runs to its end on small sizes, on a real Kafka and a real worker."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

TIMEOUT_S = 240


def scale(*arguments: str) -> dict[str, Any]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TALLYPORT_")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "bench", "scale", *arguments, "--json"],
        env=kept,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["scale"]


@pytest.mark.timeout(300)
def test_it_measures_cells_and_ids_of_each_size() -> None:
    found = scale(
        *("--part", "cells", "--part", "ids", "--cells", "1000", "--cells", "3000"),
        *("--ids", "20000", "--events", "1000", "--rounds", "1"),
    )
    assert set(found) == {"cells", "ids"}
    few, many = found["cells"]["sizes"]
    (remembered,) = found["ids"]["sizes"]
    assert (few["cells"], many["cells"], remembered["cells"]) == (1_000, 3_000, 1_000)
    assert (few["ids"], many["ids"], remembered["ids"]) == (0, 0, 20_000)
    for row in (few, many, remembered):
        assert row["few_us"] > 0
        assert row["start_s"] > 0
        assert row["restart_s"] > 0
        assert row["peak_mb"] >= row["rss_mb"] > 10
    assert few["few_ratio"] == remembered["few_ratio"] == 1
    assert few["spread_us"] is None
    assert many["spread_us"] > 0
    assert found["cells"]["bytes_each"] is not None
    assert found["ids"]["bytes_each"] is None


@pytest.mark.timeout(300)
def test_a_month_ends_for_every_policy() -> None:
    found = scale("--part", "month", "--policies", "300")
    assert set(found) == {"month"}
    month = found["month"]
    assert month["policies"] == 300
    assert month["lost"] == 0
    assert month["out_s"] >= month["first_s"]
    for name in ("before", "meanwhile"):
        assert month[f"{name}_max_ms"] >= month[f"{name}_p99_ms"] >= month[f"{name}_p50_ms"] > 0
