"""One helper: a function on N real gloo processes, each rank's result back, and never a hang."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once by the server that every rank is forked from: 4 s of a core for each rank otherwise. The server itself
# runs nothing: each rank begins as one with these imports done.
PRELOADED = ["torch", "torchrec", "torchrec.distributed.model_parallel"]


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Calls fn(rank, world_size, *args) in `world_size` spawned processes of one gloo group; returns
    their results by rank.

    fn, args and results are picklable; fn is a module's top-level function. No process outlives the call.
    Raises RuntimeError with the traceback of the rank that failed first; TimeoutError naming the ranks that had not
    ended after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        processes = [
            context.Process(target=_rank_main, args=(fn, rank, world_size, args, folder), daemon=True)
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            _wait(processes, Path(folder), timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(world_size)]


def _rank_main(fn: Callable[..., Any], rank: int, world_size: int, args: tuple[Any, ...], folder: str) -> None:
    if any(name == "lo" for _, name in socket.if_nameindex()):  # the host's own name need not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size)
    )
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", world_size=world_size, rank=rank)
        result = pickle.dumps(fn(rank, world_size, *args))
        dist.barrier()  # nobody closes its sockets while another still talks
        dist.destroy_process_group()
    except BaseException:
        _write(Path(folder) / f"error-{rank}", traceback.format_exc().encode())
        os._exit(1)  # at once: a peer may hold this rank in a collective
    _write(Path(folder) / f"result-{rank}", result)


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.rename(path)


def _wait(processes: list[ForkServerProcess], folder: Path, timeout: float) -> None:
    """Returns when all have ended well; raises at the first that has not, or at the time limit."""
    deadline = time.monotonic() + timeout
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    while running:
        ended = connection.wait(list(running), max(0.0, deadline - time.monotonic()))
        if not ended:
            raise TimeoutError(f"ranks {sorted(running.values())} had not ended after {timeout:g} s")
        for rank in [running.pop(sentinel) for sentinel in ended if isinstance(sentinel, int)]:
            processes[rank].join()
            if processes[rank].exitcode != 0:
                raise RuntimeError(_first_error(folder, rank, processes[rank].exitcode))


def _first_error(folder: Path, rank: int, exit_code: int | None) -> str:
    errors = sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
    if not errors:
        return f"rank {rank} ended with exit code {exit_code} and no traceback"
    return "\n".join(f"rank {path.name.removeprefix('error-')}:\n{path.read_text()}" for path in errors[:1])
