"""The queue on disk: order, bounds, what survives, and what a damaged file costs."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers import segment as segments
from producers import spool as spools
from producers.segment import SEGMENT_BYTES, Damaged, Segment
from producers.spool import Spool, spool_root
from producers.stats import LOST_FAILED, LOST_FULL


def values(spool: Spool, finish: bool = True) -> list[bytes]:
    found: list[bytes] = []
    while entries := spool.peek(7, 10_000):
        found += [entry.value for entry in entries]
        if not finish:
            break
        spool.finish(entries)
    return found


def left_behind(root: Path, code: str) -> None:
    """Runs ``code`` with a ``spool`` in another process, which then dies by SIGKILL."""
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom producers.spool import Spool\n"
        f"spool = Spool(Path({str(root)!r}))\n{code}\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("on_disk", [True, False])
def test_first_in_first_out_over_many_segments(tmp_path: Path, on_disk: bool) -> None:
    spool = Spool(tmp_path if on_disk else None)
    sent = [b"%06d" % n * 200 for n in range(3_000)]  # 1,200 bytes each
    for n, value in enumerate(sent):
        assert spool.append(b"k%d" % n, value, n) is None
    assert spool.waiting == 3_000
    assert values(spool) == sent
    assert spool.waiting == 0
    assert spool.append(b"k", b"later") is None
    assert values(spool) == [b"later"]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finished_is_seen_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in range(10):
        spool.append(b"k", b"%d" % n, f"tag {n}")
    assert [spool.take_tag(n) for n in (0, 2)] == ["tag 0", "tag 2"]
    spool.finish(spool.peek(3, 10_000))
    assert spool.take_tag(0) == "tag 3"
    assert spool.take_tag(0) is None
    assert values(spool, finish=False) == [b"%d" % n for n in range(3, 10)]
    spool.close()


def test_batches_keep_to_their_bounds(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for _ in range(5):
        spool.append(b"k", b"x" * 1_000)
    assert len(spool.peek(100, 2_500)) == 2
    assert len(spool.peek(100, 10)) == 1
    assert len(spool.peek(3, 10**6)) == 3
    spool.finish(spool.peek(100, 10**6))
    spool.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_beyond_the_bound_an_event_is_refused(tmp_path: Path, on_disk: bool) -> None:
    spool = Spool(tmp_path if on_disk else None, max_bytes=2 * SEGMENT_BYTES)
    value = b"x" * 60_000
    taken = 0
    while (trouble := spool.append(b"k", value)) is None:
        taken += 1
    assert trouble == LOST_FULL
    assert taken == 2 * ((SEGMENT_BYTES - 20) // (len(value) + 11))
    assert spool.append(b"k", value, "tag") == LOST_FULL
    assert len(values(spool)) == taken
    assert spool.append(b"k", value) is None
    spool.finish(spool.peek(1, 1))
    spool.close()


def test_the_bound_is_that_of_all_processes(tmp_path: Path) -> None:
    one = Spool(tmp_path, max_bytes=2 * SEGMENT_BYTES)
    other = Spool(tmp_path, max_bytes=2 * SEGMENT_BYTES)
    while (trouble := one.append(b"k", b"x" * 60_000)) is None:
        pass
    assert trouble == LOST_FULL
    assert one.waiting < 20
    other.close()
    assert one.append(b"k", b"x" * 60_000) is None
    values(one)
    one.close()


def test_a_full_disk_refuses_and_kills_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments.os, "posix_fallocate", full)
    while (trouble := spool.append(b"k", b"x" * 60_000)) is None:
        pass
    assert trouble == LOST_FAILED
    monkeypatch.undo()
    assert spool.append(b"k", b"x" * 60_000) is None
    assert len(values(spool)) == 18
    spool.close()


def test_what_a_killed_process_left_is_taken_over_once(tmp_path: Path) -> None:
    left_behind(
        tmp_path,
        "for n in range(2000): assert spool.append(b'key', b'%06d' % n * 200) is None\n"
        "spool.finish(spool.peek(5, 10**6))",
    )
    spool = Spool(tmp_path)
    (orphan,) = spool.orphans()
    assert list(Spool(tmp_path).orphans()) == []  # it has an owner again
    found: list[bytes] = []
    while entries := orphan.peek(1_000, 10**6):
        found += [entry.value[:6] for entry in entries]
        assert {entry.key for entry in entries} == {b"key"}
        orphan.finish(entries)
    assert found == [b"%06d" % n for n in range(5, 2_000)]
    orphan.remove()
    assert list(spool.orphans()) == []
    spool.close()


def test_a_takeover_that_is_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    left_behind(tmp_path, "for n in range(10): spool.append(b'k', b'%d' % n)")
    first = Spool(tmp_path)
    (orphan,) = first.orphans()
    orphan.finish(orphan.peek(4, 10**6))
    orphan.close()
    (orphan,) = Spool(tmp_path).orphans()
    assert [entry.value for entry in orphan.peek(100, 10**6)] == [b"%d" % n for n in range(4, 10)]


def test_a_process_that_lives_keeps_its_folder(tmp_path: Path) -> None:
    one, other = Spool(tmp_path), Spool(tmp_path)
    one.append(b"k", b"v")
    assert list(other.orphans()) == []
    one.close()
    (orphan,) = other.orphans()
    assert [entry.value for entry in orphan.peek(1, 1)] == [b"v"]


def test_a_childs_copy_of_the_lock_does_not_keep_the_folder(tmp_path: Path) -> None:
    left_behind(
        tmp_path,
        "spool.append(b'k', b'v')\n"
        "abandoned, told = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    spool.abandon()\n"
        "    os.write(told, b'x')\n"
        "    import time; time.sleep(3); os._exit(0)\n"
        "os.read(abandoned, 1)",
    )
    assert len(list(Spool(tmp_path).orphans())) == 1


class TestDamage:
    def left(self, folder: Path, count: int = 3) -> Path:
        left_behind(folder, f"for n in range({count}): spool.append(b'k', b'value %d' % n)")
        (path,) = folder.glob("*/*.seg")
        return path

    def read(self, folder: Path) -> tuple[list[bytes], int]:
        (orphan,) = Spool(folder).orphans()
        found: list[bytes] = []
        while entries := orphan.peek(100, 10**6):
            found += [entry.value for entry in entries]
            orphan.finish(entries)
        return found, orphan.damaged

    def test_a_changed_byte_costs_that_entry(self, tmp_path: Path) -> None:
        path = self.left(tmp_path)
        path.write_bytes(path.read_bytes().replace(b"value 1", b"valuE 1"))
        assert self.read(tmp_path) == ([b"value 0", b"value 2"], 1)

    def test_a_length_that_leads_nowhere_ends_the_segment(self, tmp_path: Path) -> None:
        path = self.left(tmp_path)
        data = bytearray(path.read_bytes())
        second = 16 + 10 + len(b"kvalue 0")
        data[second : second + 4] = (10**9).to_bytes(4, "little")
        path.write_bytes(data)
        assert self.read(tmp_path) == ([b"value 0"], 1)

    @pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
    def test_a_file_that_is_no_segment(self, tmp_path: Path, content: bytes) -> None:
        self.left(tmp_path).write_bytes(content)
        assert self.read(tmp_path) == ([], 1)

    @given(st.binary(max_size=400), st.integers(0, 400))
    def test_no_content_breaks_the_reader(self, junk: bytes, at: int) -> None:
        segment = Segment.create(None, 4096)
        for n in range(10):
            segment.append(b"key", b"value %d" % n)
        segment._memory[at : at + len(junk)] = junk
        reached = [segment.done]
        while (after := self.after(segment, reached[-1])) is not None:
            reached.append(after)
            assert len(reached) < 500
        assert reached == sorted(set(reached))

    def after(self, segment: Segment, position: int) -> int | None:
        """Where the next entry starts, None at the end."""
        try:
            entry = segment.read(position)
        except Damaged as damaged:
            return damaged.end
        return None if entry is None else entry.end


class TestFolders:
    def test_destinations_do_not_mix(self, tmp_path: Path) -> None:
        assert spool_root(tmp_path, "a") != spool_root(tmp_path, "b")
        assert spool_root(tmp_path, "a") == spool_root(tmp_path, "a")
        assert spool_root(tmp_path, "a").stat().st_mode & 0o777 == 0o700

    def test_without_a_folder_a_private_temporary_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        root = spool_root(None, "a")
        assert root.parent.parent == tmp_path
        assert root.parent.stat().st_mode & 0o777 == 0o700

    def test_a_folder_planted_by_somebody_else_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / f"tallyport-spool-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(PermissionError):
            spool_root(None, "a")

    def test_a_segment_made_ready_is_used(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path)
        while len(list(tmp_path.glob("*/*.seg"))) == 1:
            spool.append(b"k", b"x" * 60_000)
            spool.prepare()
        waiting = spool.waiting
        assert waiting < 18  # half of the first segment is enough
        while spool.waiting < 20:
            spool.append(b"k", b"x" * 60_000)
        assert len(list(tmp_path.glob("*/*.seg"))) == 2
        values(spool)
        spool.close()
        assert spools.MAX_DISK_BYTES % SEGMENT_BYTES == 0
