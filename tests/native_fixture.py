"""The compiled library. Where there is a C compiler, or in CI, its absence is a failure."""

import os
import shutil

import pytest

from pipeline.native.library import library


@pytest.fixture(scope="session")
def compiled() -> None:
    """Whoever asks for it is about the compiled library."""
    if library() is not None:
        return
    if os.environ.get("CI") or shutil.which("cc"):
        pytest.fail("the library is not compiled: run `make install`")
    pytest.skip("the library is not compiled, and there is no C compiler (cc) to do it")
