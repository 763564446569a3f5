"""Parallel trials: in this process, in worker processes of this machine, or on a Ray cluster.

Tasks are drawn one by one as workers become free, and every task that was begun is finished. So the tasks that are done
are always the first ones of the sequence. Results come as they are ready, each with its task. A worker is a bare
interpreter that imports only the function's module: it never runs the caller's main file again, as a spawned
``multiprocessing`` child would, and it imports no torch.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from importlib import import_module
from itertools import islice
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from tngraph.errors import PlanError

Parallel = int | Literal["processes", "ray"]
Task = TypeVar("Task")
Result = TypeVar("Result")
Submit = Callable[[Any], "Future[Any]"]

_WORKER = "from tngraph.search.workers import serve; serve()"


def run_tasks(
    function: Callable[[Any, Task], Result], common: object, tasks: Iterable[Task], parallel: Parallel
) -> Generator[tuple[Task, Result], None, None]:
    """Run a function on every task. Closing the generator, which is allowed at any time, ends what still runs.

    Args:
        function: a module-level function, called as ``function(common, task)``.
        common: the argument that all tasks share.
        tasks: drawn as workers get free.
        parallel: the number of processes (1 is this one), ``"processes"`` for one per core, or ``"ray"``.

    Raises:
        PlanError: a worker process ended, or Ray is not installed.
    """
    if parallel == "ray":
        return _run_on_ray(function, common, tasks)
    count = count_cores() if parallel == "processes" else parallel
    if count == 1:
        return ((task, function(common, task)) for task in tasks)
    return _run_in_processes(function, common, tasks, count)


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_concurrently(submit: Submit, tasks: Iterable[Task], count: int) -> Iterator[tuple[Task, Any]]:
    """Yield results as they are ready, with `count` tasks running at a time."""
    ahead, running = iter(tasks), dict[Future[Any], Task]()
    while True:
        running.update((submit(task), task) for task in islice(ahead, count - len(running)))
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _run_on_ray(
    function: Callable[[Any, Task], Result], common: object, tasks: Iterable[Task]
) -> Generator[tuple[Task, Result], None, None]:
    try:
        ray = import_module("ray")
    except ImportError:
        raise PlanError("the search asks for a Ray cluster, and ray is not installed\n  pip install ray") from None
    if not ray.is_initialized():
        ray.init()
    remote, shared = ray.remote(function), ray.put(common)
    references: list[Any] = []

    def submit(task: Task) -> Future[Any]:
        references.append(remote.remote(shared, task))
        return references[-1].future()  # type: ignore[no-any-return]

    try:
        yield from _run_concurrently(submit, tasks, max(1, int(ray.cluster_resources().get("CPU", 1))))
    finally:
        for reference in references:
            ray.cancel(reference)


def _run_in_processes(
    function: Callable[[Any, Task], Result], common: object, tasks: Iterable[Task], count: int
) -> Generator[tuple[Task, Result], None, None]:
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(count))
        for _ in range(count):
            worker = _start()
            stack.callback(
                _stop, worker
            )  # before the pool waits for threads: one that reads from a worker ends with it
            idle.put(worker)
            _send(worker, (function, common))
        yield from _run_concurrently(lambda task: threads.submit(_ask, idle, task), tasks, count)


def _ask(idle: SimpleQueue[subprocess.Popen[bytes]], task: object) -> object:
    """Return a task's result from a worker that is free."""
    worker = idle.get()
    try:
        _send(worker, task)
        assert worker.stdout is not None
        is_result, value = pickle.load(worker.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        raise PlanError(
            f"a worker process of the search ended with code {worker.wait()}\n  search in one: Search(parallel=1)"
        ) from None
    finally:
        idle.put(worker)
    if not is_result:
        raise value
    return value


def _start() -> subprocess.Popen[bytes]:
    """Start a worker that can import the modules of this process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-c", _WORKER]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _send(worker: subprocess.Popen[bytes], value: object) -> None:
    assert worker.stdin is not None
    pickle.dump(value, worker.stdin)
    worker.stdin.flush()


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        pipe.close()


def serve() -> None:
    """Run a worker: read a function and its shared argument, then answer task after task until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles an interruption, and then ends the workers
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the results
    function, common = pickle.load(sys.stdin.buffer)
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_answer(function, common, task), results)
        results.flush()


def _answer(function: Callable[[Any, Any], object], common: object, task: object) -> tuple[bool, object]:
    """Return whether the task succeeded, with its result or its error."""
    try:
        return True, function(common, task)
    except Exception as error:
        return False, error
