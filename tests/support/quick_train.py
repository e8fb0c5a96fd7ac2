"""fairseq-train, started in a fraction of a second: forked from a process that has imported it.

The options are those of the command line, and the process is one of its own that can be killed.
What is missing is the 6 seconds of imports, and Python's own end (``atexit``).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from support.options import SMALL_RUN, command_line

CONTEXT = multiprocessing.get_context("forkserver")
# torch imports torch._dynamo late, with the first optimizer, and takes 3 seconds for it.
CONTEXT.set_forkserver_preload(
    [
        *("fairseq_cli.train", "fairseq_cli.hydra_train", "fairseq_cli.preprocess"),
        *("torch._dynamo", "support.quick_train"),
    ]
)
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_STARTING = threading.Lock()  # the environment is the process's, not a thread's

# What runs in the new process before training, such as a fault to inject. Must be importable.
Before = Callable[[], None]


@dataclass
class Run:
    """A training process, and what it writes to standard output and standard error."""

    process: Any
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, check: bool = True, timeout: float = 300) -> str:
        """Wait for the end; what was printed. Failure fails the test that asked for success."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            pytest.fail(f"still running after {timeout} s\n{self.output()[-4000:]}", pytrace=False)
        if check and self.process.exitcode:
            pytest.fail(self.output()[-6000:], pytrace=False)
        return self.output()

    def kill(self) -> None:
        """SIGKILL to it and to its loader's processes, as a scheduler does it; wait for the end."""
        while self.alive:
            with suppress(ProcessLookupError):  # it may not have made its group yet
                os.killpg(self.process.pid, signal.SIGKILL)
                break
        self.process.join()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()


def start(
    command: list[str],
    log: Path,
    before: Before | None = None,
    cwd: Path | None = None,
    program: str = "train",
) -> Run:
    """Start a program of fairseq with these arguments; its output goes to the end of a file.

    Args:
        command: the arguments.
        log: the file.
        before: what runs in the new process before the program.
        cwd: the folder that the process works in; by default, that of the tests.
        program: its name in ``fairseq_cli``.
    """
    arguments = (program, list(map(str, command)), str(log), before, cwd)
    process = CONTEXT.Process(target=_run, args=arguments)
    with _STARTING, mock.patch.dict(os.environ, _ENVIRONMENT):
        process.start()
    return Run(process, log)


def _run(
    program: str, command: list[str], log: str, before: Before | None, cwd: Path | None
) -> None:
    os.setsid()  # a group of its own
    multiprocessing.set_start_method("fork", force=True)  # what a command starts with
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = [f"fairseq-{program.replace('_', '-')}", *command]
    main = importlib.import_module(f"fairseq_cli.{program}").cli_main
    try:
        if before is not None:
            before()
        main()
    except Exception:  # as Python ends; multiprocessing would show a traceback in any case
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def mlm_options(data: Any, save_dir: Path, **options: Any) -> list[str]:
    """The command of a small masked language model with the adversary, and more options."""
    chosen = {
        **SMALL_RUN,
        "disable-validation": True,
        "save-dir": save_dir,
        **{name.replace("_", "-"): value for name, value in options.items()},
    }
    return [str(data), *command_line(chosen)]


def rank_options(rank: int, port: int) -> dict[str, Any]:
    """What makes a command one of two ranks on this machine's CPU."""
    return {
        "distributed-backend": "gloo",
        "ddp-backend": "legacy_ddp",
        "distributed-init-method": f"tcp://127.0.0.1:{port}",
        "distributed-no-spawn": True,
        "distributed-world-size": 2,
        "nprocs-per-node": 2,
        "distributed-rank": rank,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], run: Run, timeout: float = 120) -> bool:
    """Poll, as fast as it goes, until something holds or the run has ended; whether it holds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        if not run.alive:
            return False
    run.kill()
    pytest.fail(f"nothing happened for {timeout} s\n{run.output()[-4000:]}", pytrace=False)


def run_forked(
    program: str, arguments: list[str], cwd: Path | None, check: bool
) -> subprocess.CompletedProcess[str]:
    """Run a program of fairseq in a process that is forked from one that has imported it."""
    with tempfile.TemporaryDirectory() as folder:
        run = start(arguments, Path(folder) / "log", cwd=cwd, program=program)
        output = run.wait(check, timeout=900)
    return subprocess.CompletedProcess([program, *arguments], run.process.exitcode, output)


def in_two_processes(train: Callable[..., Any]) -> list[Any]:
    """Call what trains once for each of two ranks, with the options that make them one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def worker(rank: int) -> Any:
        return train(
            distributed_backend="gloo",
            ddp_backend="legacy_ddp",
            distributed_init_method=f"tcp://127.0.0.1:{port}",
            distributed_no_spawn=True,
            distributed_world_size=2,
            nprocs_per_node=2,
            distributed_rank=rank,
        )

    with ThreadPoolExecutor() as pool:
        return list(pool.map(worker, (0, 1)))
