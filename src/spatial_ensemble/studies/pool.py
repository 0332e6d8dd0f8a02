"""Independent jobs over spawned processes, one torch thread each; what goes wrong in one becomes one clear line."""

import logging
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from spatial_ensemble.errors import UserError

Work = Callable[[Any, Callable[[int], None]], Any]


@dataclass(frozen=True)
class Event:
    """What happened to a job: a report of its own while it runs (`result` is False), or its result."""

    job: int
    value: Any
    result: bool


def run_jobs(work: Work, jobs: Sequence[Any], workers: int) -> Generator[Event]:
    """Run `work(job, report)` for each job, a process a worker, and yield what happens as it happens.

    Closing the iterator (or leaving it by an exception such as KeyboardInterrupt) ends the workers at once, so `work`
    must write its files atomically. The workers never see Ctrl-C themselves.

    Args:
        work: a function that a new process can import; it may call `report(number)` as often as it likes
        jobs: what can be pickled
        workers: processes at a time; no more are started than there are jobs

    Raises:
        UserError: a job failed or its process ended; the message names the job by `str(job)`
    """
    context = get_context("spawn")
    waiting = list(enumerate(jobs))[::-1]
    busy: dict[Connection, tuple[Any, int]] = {}
    processes = []
    try:
        for _ in range(min(workers, len(jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs))
            with _interrupts_held():
                process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            processes.append(process)
            busy[ours] = (process, _hand_over(ours, waiting))
        while busy:
            for connection in cast(list[Connection], wait(list(busy))):
                process, job = busy[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    raise UserError(f"{jobs[job]}: its process ended early ({_ending(process.exitcode)})") from None
                if kind == "failed":
                    raise UserError(f"{jobs[job]}: {value}")
                yield Event(job, value, result=kind == "result")
                if kind == "result":
                    if waiting:
                        busy[connection] = (process, _hand_over(connection, waiting))
                    else:
                        connection.send(None)
                        del busy[connection]
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join(10)
            process.kill()  # one that would not listen
            process.join()


def _hand_over(connection: Connection, waiting: list[tuple[int, Any]]) -> int:
    index, job = waiting.pop()
    with suppress(OSError):  # a process that is gone: the next recv says so
        connection.send(job)
    return index


def _ending(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    return f"signal {-exitcode}" + (": out of memory?" if exitcode == -signal.SIGKILL else "")


def _serve(work: Work, connection: Connection) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # each job would say again of its data what the parent has said once
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, so that temporary files are cleared away
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
def _interrupts_held() -> Iterator[None]:
    """A process started inside is deaf to Ctrl-C from its first line; the parent gets its own at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first process would start it, which unblocks SIGINT (Python 3.11)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
