"""Jobs over spawned processes: all results, one torch thread, one clear line for what goes wrong, nothing left."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from spatial_ensemble.errors import UserError
from spatial_ensemble.studies.pool import run_jobs

Report = Callable[[int], None]


def square(job: int, report: Report) -> tuple[int, int, int]:
    report(job)
    return job * job, torch.get_num_threads(), os.getpid()


def fail(job: str, report: Report) -> None:
    if job == "user":
        raise UserError("no such colour")
    raise RuntimeError("two\nlines")


def die(job: str, report: Report) -> None:
    report(0)
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(job: str, report: Report) -> None:
    report(0)
    time.sleep(3600)


def test_every_job_reports_and_returns_from_another_process_with_one_thread() -> None:
    events = list(run_jobs(square, [2, 3, 5], workers=2))
    assert sorted((event.job, event.value) for event in events if not event.result) == [(2, 2), (3, 3), (5, 5)]
    results = {event.job: event.value for event in events if event.result}
    assert {job: square for job, (square, _, _) in results.items()} == {2: 4, 3: 9, 5: 25}
    assert {threads for _, threads, _ in results.values()} == {1}
    assert os.getpid() not in {pid for _, _, pid in results.values()}


@pytest.mark.parametrize(
    ("work", "job", "message"),
    [
        (fail, "user", "user: no such colour"),
        (fail, "other", "other: RuntimeError: two lines"),
        (die, "third", "third: its process ended early (signal 9: out of memory?)"),
    ],
)
def test_a_failure_is_one_line_that_names_the_job(work: Callable, job: str, message: str) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError) as caught:
        list(run_jobs(work, [job], workers=1))
    assert str(caught.value) == message
    assert set(multiprocessing.active_children()) <= before


def test_leaving_early_ends_the_workers() -> None:
    before = set(multiprocessing.active_children())
    events = run_jobs(sleep, ["long"], workers=1)
    assert next(events).value == 0  # the job is at work
    events.close()  # hangs for the job's hour if it does not
    assert set(multiprocessing.active_children()) <= before


BLOCKED = """
import logging, signal
from spatial_ensemble.studies.pool import run_jobs

def blocked(job, report):
    logging.warning("of the data")
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

if __name__ == "__main__":
    print([event.value for event in run_jobs(blocked, [0, 1, 2], workers=3)])
    print(blocked(None, None))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signal masks")
def test_workers_block_interrupts_and_log_nothing_unlike_the_parent(tmp_path: Path) -> None:
    script = tmp_path / "blocked.py"
    script.write_text(
        BLOCKED
    )  # a process of its own, where no other test has started multiprocessing's resource tracker
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, True, True]\nFalse\n"
    assert done.stderr == "WARNING:root:of the data\n"


def test_no_jobs_need_no_process() -> None:
    assert list(run_jobs(square, [], workers=4)) == []


def test_the_next_job_is_chosen_when_the_result_before_it_has_been_seen() -> None:
    seen: list[int] = []

    def until_nine() -> Iterator[int]:
        number = 1
        while not seen or max(seen) < 9:
            yield number
            number += 1

    for event in run_jobs(square, until_nine(), workers=1):
        if event.result:
            seen.append(event.value[0])
    assert seen == [1, 4, 9]
