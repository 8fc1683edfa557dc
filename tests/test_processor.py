"""A process stays on the processor it was told to, with every thread it starts."""

import os
import subprocess
import sys

import pytest

from pipeline.core.errors import ConfigurationError
from pipeline.processor import processor_to_stay_on, stay_on

STAY = """
import os, threading
from pipeline.processor import processor_to_stay_on, stay_on
processor = processor_to_stay_on()
usable = os.sched_getaffinity(0)
stay_on(max(usable) if processor is None else processor)
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
print(found == [os.sched_getaffinity(0)] == [{max(usable)}], processor_to_stay_on())
"""


def test_threads_stay_with_their_process() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", STAY], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert printed == "True None\n"


def test_a_processor_is_chosen_only_among_several() -> None:
    usable = os.sched_getaffinity(0)
    assert processor_to_stay_on() == (max(usable) if len(usable) > 1 else None)


def test_a_processor_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"^TALLYPORT_WORKER_CPU: .* processor 65535"):
        stay_on(65535)
