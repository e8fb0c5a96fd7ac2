"""Runs fairseq's command-line tools side by side, each with a log; what stopped is resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vocabulary import write_aside

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))

from console import Screen, clock, shown
from training_log import logged


class DemoError(Exception):
    """A step failed; the message is for the user."""


@dataclass(frozen=True)
class Job:
    """One command line.

    Attributes:
        name: what its files are called.
        title: what the user reads.
        command: the tool and its arguments.
        after: names of the jobs whose results it needs.
        folder: what it writes; removed before it starts over.
        updates: how many updates it trains for; 0 where it does not train.
        cost: what its updates up to some number cost, in any unit: for the time that is left.
        resumes: whether it continues by itself when it was interrupted.
        depends: what else its result depends on: when that changes, it runs again.
        result: a few words about a finished job.
    """

    name: str
    title: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    folder: Path | None = None
    updates: int = 0
    cost: Callable[[int], float] = float
    resumes: bool = False
    depends: Any = None
    result: Callable[[Path], str] = field(default=lambda log: "")


class Ledger:
    """Which steps are done, and with what settings. Kept in small files, each written whole."""

    def __init__(self, output: Path) -> None:
        self._folder = output / "steps"

    def key(self, *parts: Any) -> str:
        """A short name for settings."""
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def is_done(self, name: str, key: str) -> bool:
        """Whether the step was finished with these settings."""
        return self._read(f"{name}.done").get("key") == key

    def was_begun(self, name: str, key: str) -> bool:
        """Whether the step was begun with these settings, and may be continued."""
        return self._read(f"{name}.begun").get("key") == key

    def begin(self, name: str, key: str) -> None:
        """Note that the step begins; it is no longer done with any settings."""
        (self._folder / f"{name}.done").unlink(missing_ok=True)
        self._write(f"{name}.begun", {"key": key})

    def finish(self, name: str, key: str, **facts: Any) -> None:
        """Note that the step is done."""
        self._write(f"{name}.done", {"key": key, **facts})

    def facts(self, name: str) -> dict[str, Any]:
        """What was noted when the step was done."""
        return self._read(f"{name}.done")

    def _read(self, file: str) -> dict[str, Any]:
        try:
            return json.loads((self._folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _write(self, file: str, content: dict[str, Any]) -> None:
        write_aside(self._folder / file, json.dumps(content).encode())


@dataclass
class _Running:
    job: Job
    key: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    start: int | None = None  # the first update that was logged, minus the interval

    def status(self) -> str:
        """How far it is."""
        if not self.job.updates:
            return self.job.title
        stats = list(logged(self.log, "train_inner"))
        if not stats:
            return f"{self.job.title}: starting"
        done = int(stats[-1]["num_updates"])
        text = f"{self.job.title}: update {done}/{self.job.updates}, loss {stats[-1]['loss']} bits"
        cost = self.job.cost
        if self.start is None:
            self.start = done
            self.began = time.monotonic()
        elif done > self.start:
            pace = (time.monotonic() - self.began) / (cost(done) - cost(self.start))
            text += f", {clock(pace * (cost(self.job.updates) - cost(done)))} left"
        return text


class Runner:
    """Runs jobs in the order that they depend on one another, as many at a time as there are lanes.

    Args:
        root: the folder that commands run in.
        output: the demo's folder.
        lanes: how many jobs run at a time.
        threads: how many threads each of them uses.
    """

    def __init__(
        self, root: Path, output: Path, ledger: Ledger, screen: Screen, lanes: int, threads: int
    ) -> None:
        self._root = root
        self._output = output
        self._ledger = ledger
        self._screen = screen
        self._lanes = lanes
        self._threads = threads
        self._keys: dict[str, str] = {}

    def log_of(self, name: str) -> Path:
        """Where a job's output goes."""
        return self._output / "logs" / f"{name}.log"

    def key_of(self, name: str) -> str:
        """What stands for a job's settings, those of the jobs before it included."""
        return self._keys[name]

    def run(self, jobs: Sequence[Job]) -> bool:
        """Run the jobs that are not done yet; returns whether there were any.

        Raises:
            DemoError: one of them failed; those beside it were stopped.
        """
        for job in jobs:
            command = [word.replace(str(self._output), "OUTPUT") for word in job.command]
            before = [self._keys[name] for name in job.after]
            self._keys[job.name] = self._ledger.key(command, before, job.depends)
        waiting = [job for job in jobs if not self._is_done(job)]
        anything = bool(waiting)
        running: list[_Running] = []
        try:
            while waiting or running:
                unfinished = {job.name for job in waiting} | {one.job.name for one in running}
                for job in list(waiting):
                    if len(running) < self._lanes and not unfinished & set(job.after):
                        running.append(self._start(job))
                        waiting.remove(job)
                time.sleep(0.5)
                for one in list(running):
                    code = one.process.poll()
                    if code is not None:
                        running.remove(one)
                        self._end(one, code)
                if running:
                    self._screen.progress(" | ".join(one.status() for one in running))
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
        return anything

    def _is_done(self, job: Job) -> bool:
        there = self.log_of(job.name).exists() and (job.folder is None or job.folder.exists())
        return there and self._ledger.is_done(job.name, self._keys[job.name])

    def _start(self, job: Job) -> _Running:
        key, log = self._keys[job.name], self.log_of(job.name)
        goes_on = job.resumes and self._ledger.was_begun(job.name, key)
        if not goes_on and job.folder is not None:
            shutil.rmtree(job.folder, ignore_errors=True)
        self._ledger.begin(job.name, key)
        log.parent.mkdir(parents=True, exist_ok=True)
        again = " (going on where it stopped)" if goes_on and log.exists() else ""
        self._screen.say(f"\n{job.title}{again}\n{shown(job.command)}")
        tool = Path(sys.executable).parent / job.command[0]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self._threads),
            "MKL_NUM_THREADS": str(self._threads),
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab" if goes_on else "wb") as stream:
            process = subprocess.Popen(
                [str(tool) if tool.exists() else job.command[0], *job.command[1:]],
                cwd=self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        return _Running(job, key, process, log, time.monotonic())

    def _end(self, one: _Running, code: int) -> None:
        job = one.job
        if code != 0:
            last = one.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise DemoError(
                f"{job.title}: {job.command[0]} failed with exit status {code}. "
                "What it printed last:\n\n  " + "\n  ".join(last) + f"\n\nAll of it: {one.log}"
            )
        facts = job.result(one.log)
        self._ledger.finish(job.name, one.key)
        self._screen.say(f"  done: {job.title}" + (f": {facts}" if facts else ""))
