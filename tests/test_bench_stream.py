"""The benchmark of the stream: small real runs, and what it does without the peers' environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from pipeline.bench.chart import Bar, Panel, svg
from pipeline.bench.job import DayTotals, Folding, Job, digest
from pipeline.bench.process_cost import Stopwatch
from pipeline.bench.stages import REST, shares, stage_of
from pipeline.bench.task import Task, measured, read_answer
from pipeline.bench.traffic import Load
from pipeline.bench.trouble import run as run_trouble
from pipeline.bench.troubled import CLEAN, TROUBLES, Trouble
from pipeline.bench.workers import run as run_workers
from pipeline.core.event_codec import decode_event
from pipeline.core.events import Event
from pipeline.core.totals import DAY_US
from pipeline.settings import load_settings
from producers.steady import steady

TIMEOUT_S = 360


def bench(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TALLYPORT_")}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "bench", "stream", *arguments],
        env={**kept, **more},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_all_contenders_end_with_the_totals_of_the_floor(tmp_path: Path) -> None:
    picture, scratch = tmp_path / "stream.svg", tmp_path / "scratch"
    scratch.mkdir()
    done = bench("--events", "2000", "--ports", "20", "--users", "300", "--rounds", "1",
                 "--chart", str(picture), "--json", TMPDIR=str(scratch))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == []
    found = json.loads(done.stdout)["stream"]
    rows = {row["contender"]: row for row in found["contenders"]}
    assert list(rows) == ["floor", "tallyport", "plain_faust"]
    assert found["events"] == rows["floor"]["events_read"] == 2_000
    assert {row["cells"] for row in rows.values()} == {320}
    for row in rows.values():
        assert row["events_per_s"] > 0
        assert row["cpu_s_per_million"] > 0
        assert row["peak_mb"] > 10
    assert rows["floor"]["to_floor"] == rows["tallyport"]["tallyport_to_it"] == 1
    drawn = picture.read_text("utf-8")
    assert drawn.startswith("<svg ")
    assert "plain Faust" in drawn


def test_work_that_is_shorter_than_the_system_counts_is_not_told_as_free() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        cost = Stopwatch(child.pid, child.pid).read()
    finally:
        child.kill()
        child.wait()
    assert cost["cpu_s"] > 0


async def test_troubled_traffic_ends_as_it_must(tmp_path: Path) -> None:
    kinds = [one for one in TROUBLES if one.name == "poison in every slice"]
    own = load_settings({}).on_its_own(tmp_path)
    found = (await run_trouble(own, Load(6_000), 1, print, kinds)).to_json()
    rows = cast(list[dict[str, Any]], found["kinds"])
    assert [row["trouble"] for row in rows] == [one.name for one in (CLEAN, *kinds)]
    assert rows[0]["to_clean"] == 1
    assert all(row["to_clean"] > 0 for row in rows)


async def test_two_workers_share_what_one_does_alone(tmp_path: Path) -> None:
    own = load_settings({}).on_its_own(tmp_path)
    found = (await run_workers(own, Load(6_000), 2, 1, print)).to_json()
    rows = cast(list[dict[str, Any]], found["workers"])
    assert [row["workers"] for row in rows] == [1, 2]
    assert all(row["events_per_s"] > 0 < row["cpu_s_per_million"] for row in rows)


@pytest.mark.parametrize("mode", ["--peers", "--profile"])
def test_without_the_environment_of_the_peers_it_names_the_way_there(
    mode: str, tmp_path: Path
) -> None:
    done = bench(mode, "--peers-python", str(tmp_path / "python"))
    assert done.returncode != 0
    assert "make peers" in done.stderr
    assert "Traceback" not in done.stderr


def test_modes_of_one_worker_are_not_mixed() -> None:
    assert "one at a time" in bench("--trouble", "--peers").stderr
    assert "one at a time" in bench("--trouble", "--workers", "2").stderr


def accepted(trouble: Trouble, count: int) -> list[Event]:
    events = [decode_event(value) for _, value in trouble.spoil(steady(count))]
    assert len(events) == count
    return [event for event in events if isinstance(event, Event)]


@pytest.mark.parametrize("trouble", [CLEAN, *TROUBLES], ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("count", [1, 999, 1_000])
def test_trouble_is_as_much_as_it_says(trouble: Trouble, count: int) -> None:
    due, events = trouble.fates(count), accepted(trouble, count)
    assert len(events) == count - due.rejected
    assert len(events) - len({event.event_id for event in events}) == due.duplicates
    job = Job()
    free = [job.read(value) for _, value in trouble.spoil(steady(count))]
    unpriced = sum(usage is not None and usage.cost_nano == 0 for usage in free)
    assert unpriced == due.unpriced


def test_the_hot_port_has_nine_of_ten_events() -> None:
    skewed = next(one for one in TROUBLES if "90" in one.name)
    ports = [event.port_id for event in accepted(skewed, 1_000)]
    assert ports.count("port-0000") >= 900


def test_the_job_is_the_same_one_by_one_and_in_batches() -> None:
    values = [value for _, value in steady(3_000)] + [b"{"]
    folding, job, totals = Folding(), Job(), DayTotals()
    folding.fold(values)
    for value in values:
        if (usage := job.read(value)) is not None:
            for table, name in ((totals.ports, usage.port_id), (totals.users, usage.user_id)):
                cell = table.setdefault(usage.day, {}).setdefault(name, [0, 0, 0])
                cell[0] += 1
                cell[1] += usage.tokens
                cell[2] += usage.cost_nano
    assert folding.rejected == job.rejected == 1
    assert digest(folding.totals.cells()) == digest(totals.cells())


def test_a_digest_tells_a_nano_and_not_where_cells_were_cut() -> None:
    day = 1_700_000_000_000_000 // DAY_US
    whole = [(("port:a", day), (3, 30, 300)), (("user:b", day), (1, 1, 1))]
    parts = [(("user:b", day), (1, 1, 1)), (("port:a", day), (1, 10, 100)),
             (("port:a", day), (2, 20, 200))]  # fmt: skip
    assert digest(whole) == digest(parts)
    assert digest(whole) != digest([(("port:a", day), (3, 30, 301)), whole[1]])


def test_a_contender_answers_in_its_last_line() -> None:
    cost = {"seconds": 2.0, "cpu_s": 1.0, "broker_cpu_s": 0.5, "peak_mb": 10.0}
    told = measured(500_000, cost, [(("port:a", 1), (1, 2, 3))])
    assert read_answer("a warning\n" + msgspec.json.encode(told).decode() + "\n") == told
    assert (told.events_per_s, told.cpu_us, told.broker_cpu_us) == (250_000, 2, 1)
    with pytest.raises(msgspec.DecodeError):
        read_answer("")
    task = Task("127.0.0.1:1", "usage.events", 4, 10, 1)
    assert msgspec.json.decode(task.encode(), type=Task) == task


def test_samples_belong_to_the_innermost_stage() -> None:
    main, loop = "thread (1): MainThread", "Runner.run (asyncio/runners.py:118)"
    intake = f"{main};{loop};Intake.take (pipeline/core/intake.py:90)"
    decode = f"{intake};decode_event (pipeline/core/event_codec.py:70)"
    write = f"{main};{loop};Sender.run (aiokafka/producer/sender.py:1);write (asyncio/streams.py:3)"
    other = f"thread (2): watchdog;{intake}"
    assert stage_of(decode) == "decode and validate others"
    assert stage_of(write) == "produce"
    assert stage_of(f"{main};{loop}") == REST
    found = shares("\n".join((f"{decode} 6", f"{write} 3", f"{main};{loop} 1", f"{other} 90")))
    assert found == {"decode and validate others": 0.6, "produce": 0.3, REST: 0.1}


def test_bars_have_the_length_of_their_figures() -> None:
    bars = [Bar("a & b", (100.0, 100.0), "both"), Bar("c", (50.0,), "one", 40.0, 60.0, True)]
    drawn = svg([Panel("title", "subtitle", bars)])
    assert "a &amp; b" in drawn
    assert drawn.count('width="210.0"') == 2
    assert drawn.count('width="105.0"') == 1
    assert drawn.count("<path ") == 1
