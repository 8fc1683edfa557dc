"""An event loop whose time is virtual, with processes that can be killed, frozen and thawed.

Nothing waits: when nothing is ready, time jumps to the next timer. Everything runs in one thread
in an order that depends on nothing but the order of the calls. Each callback belongs to the
*process* in whose context it was scheduled, or to the world outside of all processes. Those of a
killed process are never run again; those of a frozen one are kept until it is thawed.
"""

import asyncio
import contextlib
import sys
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from typing import Any

MAX_STEPS_PER_RUN = 3_000_000
BURIAL_STEPS = 20_000
BURIAL_ROUNDS = 4


class Killed(BaseException):
    """Ends a process at the very line it has come to; nothing in production code catches it."""


class Stuck(Exception):
    """The loop went on and on without time passing, or for longer than any run may."""


class Process:
    """One operating-system process. ``wall_skew_ms`` is how wrong its machine's clock is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.wall_skew_ms = 0
        self.held: list[_Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []

    @property
    def running(self) -> bool:
        return self.alive and not self.frozen

    def __repr__(self) -> str:
        state = "frozen" if self.frozen else "running" if self.alive else "dead"
        return f"<{self.name} {state}>"


CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)


class _Handle:
    __slots__ = ("args", "callback", "context", "is_cancelled", "process", "when_s")

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
    ) -> None:
        self.when_s = when_s
        self.callback = callback
        self.args = args
        self.context = context
        self.process = context.get(CURRENT)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s


class VirtualLoop(asyncio.AbstractEventLoop):
    """``now_s`` is monotonic time. ``errors`` holds what no task could report otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0
        self._processes: list[Process] = []
        self._world_tasks: list[asyncio.Task[Any]] = []
        self._world = Context()

    # -- what asyncio asks of a loop ---------------------------------------------------

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = _Handle(0.0, callback, args, copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = _Handle(when, callback, args, copy_context() if context is None else context)
        self._count += 1
        heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        process = CURRENT.get() if context is None else context.get(CURRENT)
        if process is None:
            self._world_tasks.append(task)
        else:
            process.tasks.append(task)
            if len(process.tasks) > 500:
                process.tasks = [one for one in process.tasks if not one.done()]
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Runs ``func`` as one step of this loop: threads would end the determinism."""
        future = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Killed:
                return
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(run)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed | asyncio.CancelledError):  # the latter of a burial
            self.errors.append(context)

    # -- the world ---------------------------------------------------

    def world_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Any:
        """Schedules something outside of all processes: the network, the broker, the supervisor."""
        return self.call_at(self.now_s + delay_s, callback, *args, context=self._world)

    def spawn_world(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task outside of all processes."""
        return self.create_task(coro, context=self._world.copy())

    def start_process(self, name: str) -> Process:
        process = Process(name)
        self._processes.append(process)
        return process

    def spawn(self, process: Process, coro: Coroutine[Any, Any, Any]) -> None:
        """A task of ``process``; nothing when the process is no more."""
        if not process.alive:
            coro.close()
            return
        context = self._world.copy()
        context.run(CURRENT.set, process)
        self.create_task(coro, context=context)

    def kill(self, process: Process) -> None:
        """No line of the process runs from here on; what it has sent is on its way."""
        process.alive = process.frozen = False
        process.held.clear()

    def freeze(self, process: Process) -> None:
        """SIGSTOP."""
        process.frozen = process.alive

    def thaw(self, process: Process) -> None:
        """SIGCONT: whatever became due meanwhile runs now."""
        process.frozen = False
        held, process.held = process.held, []
        self._ready.extend(held)

    def advance(self, duration_s: float) -> None:
        """Lets ``duration_s`` of virtual time pass. Raises ``Stuck``."""
        self.run_until(lambda: False, duration_s)

    def run_until(self, condition: Callable[[], bool], at_most_s: float) -> bool:
        """Lets time pass until ``condition``, asked before every jump of time, is true."""
        end_s = self.now_s + at_most_s
        _set_running_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._end_generator)
        try:
            while True:
                self._run_ready()
                if condition():
                    return True
                if not self._timers or self._timers[0][0] > end_s:
                    self.now_s = end_s
                    return False
                when_s, _, handle = heappop(self._timers)
                self.now_s = max(self.now_s, when_s)
                self._ready.append(handle)
        finally:
            sys.set_asyncgen_hooks(*hooks)
            _set_running_loop(None)

    def bury(self) -> None:
        """Ends every task that is left, so that nothing of this run outlives it."""
        for process in self._processes:
            process.alive, process.frozen = True, False
            process.held.clear()
        self._ready.clear()
        self._timers.clear()
        _set_running_loop(self)
        try:
            for _ in range(BURIAL_ROUNDS):
                if not self._end_tasks():
                    break
        finally:
            _set_running_loop(None)
            self._ready.clear()
            self._timers.clear()

    def _end_tasks(self) -> bool:
        """Cancels what is not done; whether there was anything. Clean-up may begin new tasks."""
        left = [task for task in self._all_tasks() if not task.done()]
        for task in left:
            task.cancel()
        for _ in range(BURIAL_STEPS):
            if self._ready:
                self._run(self._ready.popleft())
            elif self._timers:
                self._ready.append(heappop(self._timers)[2])
            else:
                break
        for task in left:
            if not task.done():
                _end(task.get_coro())
        return bool(left)

    def _all_tasks(self) -> list[asyncio.Task[Any]]:
        return [*(t for process in self._processes for t in process.tasks), *self._world_tasks]

    def _run_ready(self) -> None:
        ready = self._ready
        steps = 0
        while ready:
            self._run(ready.popleft())
            steps += 1
            if steps > MAX_STEPS_PER_RUN // 20:
                raise Stuck("something runs for ever without any time passing")
        self.steps += steps
        if self.steps > MAX_STEPS_PER_RUN:
            raise Stuck("the run takes too many steps")

    def _run(self, handle: _Handle) -> None:
        if handle.is_cancelled:
            return
        process = handle.process
        if process is not None:
            if not process.alive:
                return
            if process.frozen:
                process.held.append(handle)
                return
        handle.context.run(handle.callback, *handle.args)

    def _end_generator(self, generator: Any) -> None:
        self.call_soon(self.create_task, generator.aclose())


def _end(coro: Any) -> None:
    """Ends what will never be resumed: its next step was dropped when its process died.

    Whatever its clean-up waits for is cancelled, too; at an armed point it is killed, as before.
    """
    with contextlib.suppress(Exception, asyncio.CancelledError, Killed):
        for _ in range(BURIAL_STEPS):
            coro.throw(asyncio.CancelledError())
