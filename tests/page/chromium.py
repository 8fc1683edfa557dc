"""The Chromium that the page is tested in: the system's own, Debian's where it had to be installed.

``python -m tests.page.chromium`` sees to it that there is one; ``make test`` does so first.
"""

import os
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
UPDATE_TIMEOUT_S = 180
INSTALL_TIMEOUT_S = 600


def find() -> str | None:
    """The path of an installed Chromium."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def is_ci() -> bool:
    """Whether a missing browser is a failure."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def install() -> str | None:
    """Installs Debian's package; what kept it from that, None when it is there."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get here"
    if os.geteuid() != 0:
        return "installing it needs root: apt-get install chromium"
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    package = ("install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core")
    for words, timeout_s in ((("update",), UPDATE_TIMEOUT_S), (package, INSTALL_TIMEOUT_S)):
        try:
            done = subprocess.run(
                ["apt-get", *words],
                env=environ,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {words[0]} did not end within {timeout_s} s"
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            return f"apt-get {words[0]} failed: {lines[-1]}"
    return None if find() else "apt-get installed it, and it cannot be found"


def main() -> int:
    """The exit status: 0 where there is one, or where tests may go on without."""
    if find() is not None:
        return 0
    print("Chromium is missing; installing it with apt-get", flush=True)
    problem = install()
    if problem is None:
        return 0
    print(f"no Chromium for the tests of the page: {problem}", file=sys.stderr)
    return 1 if is_ci() else 0


if __name__ == "__main__":
    sys.exit(main())
