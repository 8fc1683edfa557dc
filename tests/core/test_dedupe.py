"""The window against a plain dict: any split, any order, any times."""

import random
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import dedupe
from pipeline.core.dedupe import ENTRY_BYTES, DedupeWindow, IdSearch, encode_ids, event_key
from pipeline.core.dedupe_segment import Segment
from pipeline.native.ids import id_search

HORIZON_MS = 1_000
START_MS = 1_700_000_000_000


class Model:
    """What the window promises, as plainly as can be."""

    def __init__(self) -> None:
        self.times_ms: dict[bytes, list[int]] = {}

    def admit(self, key: bytes, time_ms: int, arrived_ms: int | None = None) -> bool:
        times_ms = self.times_ms.setdefault(key, [])
        at_ms = time_ms if arrived_ms is None else arrived_ms
        if any(abs(at_ms - earlier_ms) <= HORIZON_MS for earlier_ms in times_ms):
            return False
        times_ms.append(time_ms)
        return True


_search: dict[str, IdSearch | None] = {}


@pytest.fixture(autouse=True, params=["in Python", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with numpy, and with the library."""
    if request.param == "compiled":
        request.getfixturevalue("compiled")
        monkeypatch.setitem(_search, "compiled", id_search())


def new_window() -> DedupeWindow:
    return DedupeWindow(HORIZON_MS, _search.get("compiled"))


def keys_of(start: int, count: int) -> list[bytes]:
    return [event_key("port", str(number)) for number in range(start, start + count)]


@pytest.fixture
def tiny_segments(monkeypatch: pytest.MonkeyPatch):
    """Few ids per segment and vectors from the second id on, so that small inputs reach all."""
    monkeypatch.setattr(dedupe, "_FIRST_CAPACITY", 3)
    monkeypatch.setattr(dedupe, "_EARLY_CAPACITY", 5)
    monkeypatch.setattr(dedupe, "_SMALL_BATCH", 2)
    monkeypatch.setattr("pipeline.core.dedupe_segment._FEW", 1)


# Keys that collide in whatever a table could look at: the first slot, the filter bit, either word.
COLLIDING = [
    high.to_bytes(8, "little") + low.to_bytes(8, "little")
    for high in (0, 2, 2 << 32 | 2, 2**64 - 1, 2**64 - 2, 1 << 63)
    for low in (0, 1, 2**64 - 1)
]
KEYS = st.one_of(st.sampled_from(COLLIDING), st.integers(0, 15).map(lambda n: keys_of(n, 1)[0]))
TIMES = st.one_of(
    st.integers(0, 5 * HORIZON_MS).map(lambda ms: START_MS + ms),
    st.sampled_from([0, START_MS, START_MS + 2**31 - 1, START_MS - 2**31 - 1, 253_402_300_799_999]),
)


@pytest.mark.usefixtures("tiny_segments")
def test_the_window_answers_like_a_dict():
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.lists(st.tuples(KEYS, TIMES), max_size=12), max_size=12))
    def check(batches: list[list[tuple[bytes, int]]]) -> None:
        window, model = new_window(), Model()
        for batch in batches:
            expected = [model.admit(key, time_ms) for key, time_ms in batch]
            answer = window.admit([key for key, _ in batch], [time_ms for _, time_ms in batch])
            assert answer == expected
        assert len(window) == sum(map(len, model.times_ms.values()))

    check()


@pytest.mark.usefixtures("tiny_segments")
def test_what_came_elsewhere_before_is_told_by_when_it_came_here_and_survives_a_restart():
    step = st.tuples(KEYS, st.integers(0, 400), st.integers(0, 3 * HORIZON_MS))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.lists(step, max_size=8), max_size=20))
    def check(batches: list[list[tuple[bytes, int, int]]]) -> None:
        window, model, journal = new_window(), Model(), b""
        now_ms = START_MS
        for batch in batches:
            arrived_ms = [now_ms := now_ms + gap_ms for _, gap_ms, _ in batch]
            times_ms = [at_ms - one[2] for at_ms, one in zip(arrived_ms, batch, strict=True)]
            keys = [key for key, _, _ in batch]
            records = list(zip(keys, times_ms, arrived_ms, strict=True))
            expected = [model.admit(*record) for record in records]
            restarted = new_window()
            restarted.load(journal)
            assert restarted.admit(keys, times_ms, arrived_ms) == expected
            assert window.admit(keys, times_ms, arrived_ms) == expected
            admitted = [one for one, is_new in zip(records, expected, strict=True) if is_new]
            journal += encode_ids([one[0] for one in admitted], [one[1] for one in admitted])
            window.forget_before(now_ms)

    check()


@pytest.mark.usefixtures("tiny_segments")
def test_forgetting_never_shows_in_records_of_the_watermark_or_later():
    step = st.tuples(KEYS, st.integers(0, 400))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.lists(step, max_size=8), max_size=20))
    def check(batches: list[list[tuple[bytes, int]]]) -> None:
        window, model = new_window(), Model()
        now_ms = START_MS
        for batch in batches:
            times_ms = [now_ms := now_ms + gap_ms for _, gap_ms in batch]
            keys = [key for key, _ in batch]
            expected = [model.admit(*record) for record in zip(keys, times_ms, strict=True)]
            assert window.admit(keys, times_ms) == expected
            window.forget_before(now_ms)

    check()


@pytest.mark.usefixtures("tiny_segments")
def test_the_split_of_a_stream_does_not_matter():
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(KEYS, TIMES), max_size=40), st.integers(1, 40))
    def check(records: list[tuple[bytes, int]], size: int) -> None:
        whole, split = new_window(), new_window()
        keys, times_ms = [key for key, _ in records], [time_ms for _, time_ms in records]
        answers: list[bool] = []
        for start in range(0, len(records), size):
            end = start + size
            answers += split.admit(keys[start:end], times_ms[start:end])
        assert whole.admit(keys, times_ms) == answers

    check()


def test_thousands_of_ids_in_real_segments():
    window = new_window()
    keys = keys_of(0, 40_000)
    times_ms = [START_MS + number // 100 for number in range(len(keys))]
    for size in (1, 7, 5_000):
        for start in range(0, len(keys), 10_000):
            batch = slice(start, start + size)
            window.admit(keys[batch], times_ms[batch])
    assert not any(window.admit(keys[20_000:25_000], times_ms[20_000:25_000]))
    assert all(window.admit(keys[25_000:30_000], times_ms[25_000:30_000]))
    assert len(window) == 25_000


def test_equal_ids_inside_one_large_batch():
    window = new_window()
    keys = keys_of(0, 2_000)
    answer = window.admit(keys + keys[:500], [START_MS] * 2_500)
    assert answer == [True] * 2_000 + [False] * 500
    later_ms = START_MS + HORIZON_MS
    assert window.admit(keys[:1] * 100, [later_ms] * 50 + [later_ms + 1] * 50) == (
        [False] * 50 + [True] + [False] * 49
    )


def test_the_horizon_is_inclusive_and_looks_both_ways():
    window = new_window()
    (key,) = keys_of(0, 1)
    assert window.admit([key], [START_MS]) == [True]
    for time_ms in (START_MS + HORIZON_MS, START_MS - HORIZON_MS, START_MS):
        assert window.admit([key], [time_ms]) == [False]
    assert window.admit([key], [START_MS - HORIZON_MS - 1]) == [True]
    assert window.admit([key], [START_MS + HORIZON_MS + 1]) == [True]
    assert window.admit([key], [START_MS]) == [False]


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory is traced, that of arrays included."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held_bytes() -> int:
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.usefixtures("traced")
def test_forgetting_frees_the_memory():
    window = new_window()
    before = held_bytes()
    window.admit(keys_of(0, 10_000), [START_MS] * 10_000)
    assert held_bytes() - before > 24 * 10_000
    window.forget_before(START_MS + HORIZON_MS)
    assert len(window) == 10_000
    window.forget_before(START_MS + HORIZON_MS + 1)
    assert len(window) == 0
    assert held_bytes() - before < 10_000


def test_a_slow_stream_stays_bounded_too():
    window = new_window()
    for step in range(500):
        time_ms = START_MS + step * 50
        window.admit(keys_of(step, 1), [time_ms])
        window.forget_before(time_ms)
        assert len(window) <= 2.6 * HORIZON_MS / 50


@pytest.mark.usefixtures("traced")
def test_memory_per_id_at_scale():
    window = new_window()
    before = held_bytes()
    source = random.Random(1)
    for round_number in range(200):
        raw = source.randbytes(16 * 5_000)
        keys = [raw[start : start + 16] for start in range(0, len(raw), 16)]
        window.admit(keys, [START_MS + round_number] * 5_000)
    del raw, keys
    assert len(window) == 1_000_000
    assert held_bytes() - before <= 40 * len(window)


def test_ids_go_through_bytes_and_loading_twice_changes_nothing():
    first = new_window()
    keys = [*keys_of(0, 3_000), bytes(16), bytes(15) + b"\1"]
    times_ms = [START_MS - number for number in range(len(keys))]
    assert all(first.admit(keys, times_ms))
    packed = encode_ids(keys, times_ms)
    assert len(packed) == ENTRY_BYTES * len(keys)
    assert packed[:24] == keys[0] + times_ms[0].to_bytes(8, "little", signed=True)
    second = new_window()
    for part in (packed[: 24 * 10], packed, packed):
        second.load(part)
    assert len(second) == len(keys)
    assert not any(second.admit(keys, times_ms))
    assert encode_ids([], []) == b""
    second.load(b"")


def test_keys_and_times_must_match_in_number():
    for count in (2, 200):
        with pytest.raises(ValueError, match="times"):
            new_window().admit(keys_of(0, count), [START_MS])
        with pytest.raises(ValueError, match="times"):
            new_window().admit(keys_of(0, 1), [START_MS], [START_MS] * count)


def test_a_full_segment_still_answers():
    segment = Segment(100, START_MS)
    for number in range(100):
        segment.add(number + 1, number, START_MS)
    assert segment.room() == 0
    assert all(segment.holds(number + 1, number, START_MS, 0) for number in range(100))
    assert not segment.holds(1, 5, START_MS, 0)


def test_the_identity_keeps_its_parts_apart():
    assert event_key("a", "bc") != event_key("ab", "c")
    assert event_key("", "1:a") != event_key("1", ":a")
    assert event_key("é", "") != event_key("", "é")
    assert event_key("harbor-7", "e1") == bytes.fromhex("4b6efd3aa1b41e48315dd0cf77cc2d7e")
