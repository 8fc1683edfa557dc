"""On a part's PYTHONPATH this lets its fetching die as soon as the file ``FETCH_FAULT`` exists.

With ``task`` in the file the task that fetches fails; with ``thread`` the thread it lives in ends.
"""

import os
import threading

_file = os.environ.get("FETCH_FAULT", "")


def _break_fetching() -> None:
    from aiokafka.consumer.fetcher import Fetcher

    actions = Fetcher._get_actions_per_node

    def failing(self: Fetcher, assignment: object) -> object:
        in_thread = threading.current_thread() is not threading.main_thread()
        if in_thread and os.path.exists(_file):  # noqa: PTH110
            with open(_file, encoding="ascii") as file:  # noqa: PTH123
                mode = file.read()
            if mode == "task":
                raise ValueError("fetching has been made to fail")
            if mode == "thread":  # at first the file is there and empty
                self._loop.stop()
        return actions(self, assignment)

    Fetcher._get_actions_per_node = failing


if _file:
    _break_fetching()
