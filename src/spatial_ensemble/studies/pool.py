"""Independent jobs in spawned worker processes, one torch thread each.

`concurrent.futures.ProcessPoolExecutor` does not fit: when a worker is killed it fails every pending job without saying
which one had died, and before Python 3.14 it cannot stop a job that is running.
"""

import logging
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar, cast

import torch

from spatial_ensemble.errors import UserError

J = TypeVar("J")
Work = Callable[[J, Callable[[int], None]], Any]


@dataclass(frozen=True)
class Event(Generic[J]):
    """A job's progress report (`result` is False) or its result."""

    job: J
    value: Any
    result: bool


def run_jobs(work: Work[J], jobs: Iterable[J], workers: int) -> Generator[Event[J]]:
    """Run `work(job, report)` for each job and yield reports and results as they arrive.

    A job is taken whenever a worker is free, after the result before was yielded. `work` must be importable, may call
    `report(number)` at any time, and must write its files atomically: closing the iterator, or leaving it by an
    exception such as KeyboardInterrupt, terminates the workers. They run with SIGINT blocked.

    Raises:
        UserError: a job failed or its process died; the message names the job by `str(job)`.
    """
    waiting = iter(jobs)
    processes: dict[Connection, SpawnProcess] = {}
    busy: dict[Connection, J] = {}
    try:
        for job in islice(waiting, workers):
            connection, process = _start(work)
            processes[connection], busy[connection] = process, job
            _send(connection, job)
        while busy:
            for connection in cast(list[Connection], wait(list(busy))):
                job = busy[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    raise UserError(f"{job}: its process ended early ({_ending(processes[connection])})") from None
                if kind == "failed":
                    raise UserError(f"{job}: {value}")
                yield Event(job, value, result=kind == "result")
                if kind == "result":
                    del busy[connection]
                    _send(connection, following := next(waiting, None))  # None ends the worker
                    if following is not None:
                        busy[connection] = following
    except BaseException:
        for process in processes.values():
            process.terminate()
        raise
    finally:
        for process in processes.values():
            process.join(10)
            process.kill()  # in case SIGTERM was not enough
            process.join()


def _start(work: Work[J]) -> tuple[Connection, SpawnProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs))
    with _sigint_blocked():
        process.start()
    theirs.close()  # the worker holds the only other end, so its death closes the pipe
    return ours, process


def _send(connection: Connection, job: object) -> None:
    with suppress(OSError):  # a dead worker; the next recv reports it
        connection.send(job)


def _ending(process: SpawnProcess) -> str:
    process.join()
    code = process.exitcode or 0
    guess = ": out of memory?" if code == -signal.SIGKILL else ""
    return f"signal {-code}{guess}" if code < 0 else f"exit code {code}"


def _serve(work: Work[Any], connection: Connection) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # the parent has already logged what each job would repeat about its data
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, so that temporary files are removed
    try:
        while (job := connection.recv()) is not None:
            try:
                connection.send(("result", work(job, lambda number: connection.send(("report", number)))))
            except Exception as error:
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                connection.send(("failed", " ".join(f"{kind}{error}".split())))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started inside inherit a blocked SIGINT; the parent handles its own on leaving."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first process would start it, which unblocks SIGINT (Python 3.11)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
