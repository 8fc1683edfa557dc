"""What is compiled, what not, and what is said of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.blocks import ROW_COLUMNS
from pipeline.core.dedupe import HASH_KEY
from pipeline.core.errors import TallyportError
from pipeline.core.event_codec import MAX_EVENT_BYTES
from pipeline.core.event_fields import (
    BILLING_SCOPES,
    FIELDS,
    KINDS,
    MAX_COUNT,
    MAX_FEATURE_CHARS,
    MAX_ID_CHARS,
    MAX_TAG_KEY_CHARS,
    MAX_TAG_VALUE_CHARS,
    MAX_TAGS,
    MAX_TEXT_CHARS,
)
from pipeline.native import build, library
from pipeline.native.batches import batch_reader
from pipeline.native.build import NotCompiled, compile_library
from pipeline.native.ids import id_search
from pipeline.native.slice import usual_reader


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another place for the library, where there is none yet."""
    place = tmp_path / "libslice.so"
    monkeypatch.setattr(library, "LIBRARY", place)
    library.library.cache_clear()
    yield place  # pyright: ignore
    library.library.cache_clear()


def test_without_a_library_all_is_done_in_python(elsewhere: Path) -> None:
    assert not elsewhere.exists()
    assert library.library() is None
    assert (batch_reader(), id_search(), usual_reader(0, 1)) == (None, None, None)


@pytest.mark.usefixtures("compiled")
def test_a_library_of_another_source_is_refused(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(build, "source_digest", lambda: "another")
        compile_library(elsewhere)
    with pytest.raises(TallyportError, match="compiled from another source"):
        library.library()


def test_a_file_that_is_no_library_is_refused(elsewhere: Path) -> None:
    elsewhere.write_bytes(b"no library")
    with pytest.raises(TallyportError, match=r"cannot be loaded.*pipeline.native.build"):
        library.library()


@pytest.mark.usefixtures("compiled")
def test_it_compiles_without_a_warning_and_appears_at_once(tmp_path: Path) -> None:
    target = tmp_path / "lib.so"
    compile_library(target, ("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"))
    assert [one.name for one in tmp_path.iterdir()] == ["lib.so"]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "cc --no-such-flag-at-all"])
def test_a_compiler_that_fails_leaves_nothing_behind(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(NotCompiled, match=compiler.split()[0]):
        compile_library(tmp_path / "lib.so")
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_it_is_said_and_no_error(tmp_path: Path) -> None:
    place = tmp_path / "libslice.so"
    place.write_bytes(b"of an older source")
    code = (
        "import sys; from pathlib import Path; from pipeline.native import build; "
        "build.LIBRARY = Path(sys.argv[1]); build.main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(place)],
        env={"PATH": "/nowhere"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0
    assert "not compiled" in ran.stderr
    assert "no C compiler" in ran.stderr
    assert not place.exists()


@pytest.mark.parametrize(
    "chosen",
    [
        ("tests/native/test_slice.py", "tests/native/test_batches.py"),
        ("tests/core/test_dedupe.py", "-k", "compiled"),
    ],
    ids=["slices and batches", "ids"],
)
@pytest.mark.usefixtures("compiled")
def test_no_memory_is_touched_that_is_not_its_own(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    """The tests of slices, batches and ids once more, with the compiler's sanitizers."""
    target = tmp_path / "libslice.so"
    try:
        compile_library(target, ("-fsanitize=address,undefined", "-fno-sanitize-recover", "-g"))
    except NotCompiled as error:
        pytest.skip(f"the compiler has no sanitizers: {error}")
    runtime = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    code = (
        "import sys, pytest; from pathlib import Path; from pipeline.native import build, library; "
        "library.LIBRARY = Path(sys.argv[1]); library.library.cache_clear(); "
        "sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *sys.argv[2:]]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(target), *chosen],
        env={"PATH": "/usr/bin:/bin", "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def test_the_library_knows_every_field() -> None:
    """A field that is new in an event has to be in its table, or among those it leaves."""
    source = build.SOURCE.read_text("utf-8")
    known = re.findall(r'NAMED\("(\w+)"\)', source)
    assert sorted([*known, "audio_seconds", "reported_cost"]) == sorted(FIELDS)
    assert f"ROW_FIELDS = {len(ROW_COLUMNS)} " in source
    assert f'HASH_KEY[] = "{HASH_KEY.decode()}"' in source
    bounds = f"MAX_ID = {MAX_ID_CHARS}, MAX_TEXT = {MAX_TEXT_CHARS}, MAX_EVENT_BYTES = 64 * 1024"
    assert bounds in source
    bounds = f"MAX_TAG_KEY = {MAX_TAG_KEY_CHARS}, MAX_TAG_VALUE = {MAX_TAG_VALUE_CHARS} "
    assert f"MAX_TAGS = {MAX_TAGS}, {bounds}" in source
    assert (MAX_FEATURE_CHARS, MAX_EVENT_BYTES) == (MAX_ID_CHARS, 64 * 1024)
    assert f"MAX_COUNT = {MAX_COUNT};" in source
    for choices in (KINDS, BILLING_SCOPES):
        assert "{" + ", ".join(f'"{one}"' for one in choices) + "}" in source
