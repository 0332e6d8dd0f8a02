"""Worlds of real processes: one gloo group for each size, started once and asked by every test."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

SECONDS = 120  # for one call, on a busy machine


class World:
    """`world(function, *args)` runs a function of a test module on every rank and returns what the ranks returned.

    Starting processes takes seconds, so they stay for the session; after a failure, which may leave some ranks waiting
    for others, they are ended and the next call starts new ones.
    """

    def __init__(self, size: int):
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        results: dict[int, Any] = {}
        errors: list[str] = []
        while waiting := [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]:
            ready = wait(waiting, timeout=2 if errors else SECONDS)
            if not ready:  # after an error: they wait for a rank that has failed
                errors = errors or [f"no answer in {SECONDS} s from ranks other than {sorted(results)} of {self.size}"]
                break
            for pipe in ready:
                rank = self._pipes.index(pipe)
                error, results[rank] = pickle.loads(pipe.recv_bytes())
                errors += [f"rank {rank} of {self.size}:\n{error}"] if error else []
        if errors:
            self.end()
            raise AssertionError("\n".join(errors))
        return [results[rank] for rank in range(self.size)]

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["warm"])
        store = Path(tempfile.mkdtemp()) / "store"
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # where `warm` is
        # Without a GPU, on which `fully_shard` would build its mesh by itself.
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=path):
            for rank in range(self.size):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(rank, self.size, store, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)

    def end(self) -> None:
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            pipe.close()
            process.terminate()
            process.join()
        self._processes, self._pipes = [], []


def _serve(rank: int, size: int, store: Path, pipe: Connection) -> None:
    warnings.simplefilter("error")
    for message in ("DTensor random operators may not", "TypedStorage is deprecated"):  # what torch 2.6 tells itself
        warnings.filterwarnings("ignore", message)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS)
    )
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = None, function(*args)
        except BaseException:
            answer = traceback.format_exc(), None
        pipe.send_bytes(pickle.dumps(answer))
