from pipeline.web.progress import STALL_S, Backlog, Heartbeats


def test_nothing_to_do_is_never_overdue() -> None:
    backlog = Backlog()
    for now_s in (0.0, STALL_S, 100 * STALL_S):
        backlog.observe(5, 5, now_s)
        assert not backlog.overdue(now_s)
    assert backlog.lag == 0


def test_work_that_waits_becomes_overdue() -> None:
    backlog = Backlog()
    backlog.observe(5, 9, 0.0)
    assert backlog.lag == 4
    backlog.observe(5, 9, STALL_S - 0.1)
    assert not backlog.overdue(STALL_S - 0.1)
    assert backlog.overdue(STALL_S)


def test_a_reader_that_moves_is_not_stalled_however_far_behind() -> None:
    backlog = Backlog()
    for step in range(50):
        now_s = step * STALL_S / 2
        backlog.observe(step, 10_000, now_s)
        assert not backlog.overdue(now_s)


def test_work_after_a_long_idle_time_starts_to_wait_when_it_comes() -> None:
    backlog = Backlog()
    backlog.observe(5, 5, 0.0)
    backlog.observe(5, 6, 1000.0)
    assert not backlog.overdue(1000.0)
    assert backlog.overdue(1000.0 + STALL_S)


def test_markers_of_transactions_are_no_work() -> None:
    backlog = Backlog()
    backlog.observe(5, 6, 0.0)
    assert backlog.overdue(STALL_S)
    backlog.found_empty(6)
    backlog.observe(5, 6, STALL_S)
    assert not backlog.overdue(10 * STALL_S)
    assert backlog.lag == 0
    backlog.observe(5, 8, 20 * STALL_S)
    assert backlog.lag == 2
    assert backlog.overdue(21 * STALL_S)


def test_what_nobody_has_looked_at_is_no_stall() -> None:
    backlog = Backlog()
    backlog.observe(5, 9, 0.0)
    assert not backlog.to_be_looked_at(0.0)
    assert backlog.to_be_looked_at(STALL_S / 4)
    assert not backlog.stalled(2 * STALL_S)
    backlog.found_empty(7)
    assert backlog.to_be_looked_at(STALL_S / 4)
    assert backlog.lag == 2
    backlog.found_record(8)
    assert not backlog.to_be_looked_at(STALL_S)
    assert not backlog.stalled(STALL_S - 0.1)
    assert backlog.stalled(STALL_S)


def test_a_record_is_work_until_the_reader_has_passed_it() -> None:
    backlog = Backlog()
    backlog.observe(5, 9, 0.0)
    backlog.found_record(8)
    backlog.observe(9, 11, STALL_S)
    assert not backlog.stalled(3 * STALL_S)
    assert backlog.to_be_looked_at(2 * STALL_S)


def heartbeat(as_of: str, **through: int) -> bytes:
    offsets = ",".join(f'"{name[1:]}":{offset}' for name, offset in through.items())
    return f'{{"as_of":"{as_of}","through":{{{offsets}}}}}'.encode()


def test_contained_is_what_every_partition_contains() -> None:
    beats = Heartbeats(2)
    beats.take(b"!heartbeat|0", heartbeat("2026-11-22T10:00:00.000Z", p0=7, p1=3), 1.0)
    assert beats.contained(0) == 0
    beats.take(b"!heartbeat|1", heartbeat("2026-11-22T10:00:00.000Z", p0=5, p1=4), 1.0)
    assert (beats.contained(0), beats.contained(1), beats.contained(2)) == (5, 3, 0)


def test_a_heartbeat_advances_by_its_as_of_and_not_by_its_arrival() -> None:
    beats = Heartbeats(1)
    beats.take(b"!heartbeat|0", heartbeat("2026-11-22T10:00:00.000Z", p0=1), 1.0)
    beats.take(b"!heartbeat|0", heartbeat("2026-11-22T10:00:00.000Z", p0=1), 2.0)
    assert beats.advanced_s[0] == 1.0
    beats.take(b"!heartbeat|0", heartbeat("2026-11-22T10:00:01.000Z", p0=1), 3.0)
    assert beats.advanced_s[0] == 3.0


def test_what_is_no_heartbeat_is_left_alone() -> None:
    beats = Heartbeats(1)
    beats.take(b"port:a|tokens|month", b"{}", 1.0)
    beats.take(b"!heartbeat|0", b"{", 1.0)
    beats.take(b"!heartbeat|0", None, 1.0)
    beats.take(None, b"{}", 1.0)
    assert beats.through == {}
