"""Runs the demo's steps, those of a stage side by side; what stopped is resumed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))

from console import Screen, clock, shown
from training_log import logged

from alum_fairseq.files import whole_file

_PRIOR = 10.0  # seconds of work that the pace of the step before counts for
_PERCENT = re.compile(r"(\d+)%\|")
_SCRIPT = """\
#!/usr/bin/env bash
# What `bash scripts/demo.sh` ran, step by step. It runs by itself, too, and then writes to a folder
# of its own:
#
#   bash commands.sh [FOLDER]    default: demo-again in the clone
set -euo pipefail
root={root}
output="$(realpath -m "${{1:-$root/demo-again}}")"
cd "$root"
. scripts/environment.sh
alum_activate
export CUDA_VISIBLE_DEVICES="" # no GPU: the same digits everywhere
"""


class DemoError(Exception):
    """A step failed; the message is for the user."""


@dataclass(frozen=True)
class Step:
    """One command line.

    Attributes:
        name: what its files are called.
        title: what the user reads.
        command: the tool and its arguments.
        seconds: about how long it takes on an idle machine.
        makes: what it writes; removed before it starts over. None: what it keeps is never stale.
        resumes: whether it goes on by itself when it was interrupted.
        share: how much of it is done (0 to 1), by the log; None if the log does not say.
    """

    name: str
    title: str
    command: tuple[str, ...]
    seconds: float
    makes: Path | None = None
    resumes: bool = False
    share: Callable[[Path], float | None] = lambda log: None


Stages = Sequence[Sequence[Step]]


def share_of_updates(updates: int) -> Callable[[Path], float | None]:
    """How much of a training is done, by what fairseq logs as JSON."""

    def share(log: Path) -> float | None:
        stats = list(logged(log, "train_inner"))
        return int(stats[-1]["num_updates"]) / updates if stats else None

    return share


def share_of_bar(log: Path) -> float | None:
    """How much is done, by the last of our commands' progress bars."""
    found = _PERCENT.findall(log.read_text(encoding="utf-8", errors="replace"))
    return int(found[-1]) / 100 if found else None


def script(stages: Stages, root: Path, output: Path, threads: int) -> str:
    """All steps as a shell script."""
    steps = [step for stage in stages for step in stage]
    text = _SCRIPT.format(root=shown([str(root)], "").strip())
    for number, step in enumerate(steps, 1):
        words = [word.replace(str(output), "OUTPUT") for word in step.command]
        command = f"OMP_NUM_THREADS={threads} " + shown(words, "").replace("OUTPUT", '"$output"')
        text += f"\n# {number} of {len(steps)}: {step.title}\n{command}\n"
    return text


class Ledger:
    """Which steps are done, and with what settings. Kept in small files, each written whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, state: str) -> dict[str, Any]:
        """What was noted when the step was ``begun`` or ``done``; nothing if it was not."""
        try:
            return json.loads((self._folder / f"{name}.{state}").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write(self, name: str, state: str, **facts: Any) -> None:
        """Note that the step is ``begun`` (and so no longer done) or ``done``."""
        if state == "begun":
            (self._folder / f"{name}.done").unlink(missing_ok=True)
        with whole_file(self._folder / f"{name}.{state}") as aside:
            aside.write_text(json.dumps(facts), encoding="utf-8")


@dataclass
class TimeLeft:
    """Predicts how long the steps take, by how fast they have been since this start.

    Attributes:
        pace: of the last step that ended, as a multiple of an idle machine's.
        began: when each running step began, or was first seen to go on, and its share then.
    """

    pace: float = 1.0
    began: dict[str, tuple[float, float]] = field(default_factory=dict)

    def begin(self, step: Step, now: float) -> None:
        """The step begins, or goes on."""
        self.began[step.name] = (now, 0.0)

    def went_on(self, step: Step, share: float, now: float) -> None:
        """The share that a step went on from is known: nothing of it was done since this start."""
        self.began[step.name] = (now, share)

    def pace_of(self, step: Step, share: float, now: float) -> float:
        """Of a running step."""
        since, first = self.began[step.name]
        done = step.seconds * (share - first)
        return (now - since + _PRIOR * self.pace) / (done + _PRIOR) if done > 0 else self.pace

    def end(self, step: Step, now: float) -> None:
        """The step is done."""
        self.pace = self.pace_of(step, 1.0, now)

    def left(self, running: dict[Step, float | None], later: Stages, now: float) -> float:
        """Seconds until all is done; ``running`` has the share of each step, where it is known."""
        slowest, pace = 0.0, self.pace
        for step, share in running.items():
            since, first = self.began[step.name]
            own = self.pace_of(step, first if share is None else share, now)
            remaining = own * step.seconds * (1 - (first if share is None else share))
            if share is None:
                remaining = max(0.0, remaining - (now - since))
            if remaining >= slowest:
                slowest, pace = remaining, own
        return slowest + pace * sum(max(step.seconds for step in stage) for stage in later)


@dataclass
class _Running:
    step: Step
    number: int
    process: subprocess.Popen[bytes]
    began: float
    spent: dict[str, float]  # by what was done before
    size: int  # of the log when it began
    goes_on: bool

    def share(self, log: Path) -> float | None:
        """How much is done; None until what was started now says it."""
        return self.step.share(log) if log.stat().st_size > self.size else None

    def usage(self, used: Any) -> dict[str, float]:
        """Seconds of the clock and the processor, and the most memory (bytes), in all."""
        return {
            "seconds": self.spent.get("seconds", 0.0) + time.monotonic() - self.began,
            "cpu": self.spent.get("cpu", 0.0) + used.ru_utime + used.ru_stime,
            "memory": max(self.spent.get("memory", 0), used.ru_maxrss * 1024),
        }


class Runner:
    """Runs stages one after another, and the steps of each side by side.

    Args:
        root: the folder that commands run in.
        output: the demo's folder.
        screen: where progress is shown.
        threads: of each step.
        made_of: what results depend on besides commands: when it changes, all runs again.
    """

    def __init__(
        self, root: Path, output: Path, screen: Screen, threads: int, made_of: object = None
    ) -> None:
        self._root, self._output, self._screen = root, output, screen
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONUNBUFFERED": "1",
            "ALUM_PROGRESS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._made_of = made_of
        self._ledger = Ledger(output / "steps")
        self._keys: dict[str, str] = {}
        self._time = TimeLeft()

    def log_of(self, step: Step) -> Path:
        """Where a step's output goes."""
        return self._output / "logs" / f"{step.name}.log"

    def spent(self, name: str) -> dict[str, float]:
        """What a step took: ``seconds``, ``cpu`` (seconds of the processor), ``memory``."""
        return self._ledger.read(name, "done")["spent"]

    def run(self, stages: Stages) -> bool:
        """Run the steps that are not done yet; returns whether there were any.

        Raises:
            DemoError: one of them failed; those beside it were stopped.
        """
        number, anything, before = 1, False, self._made_of
        todo: list[list[tuple[int, Step]]] = []
        for stage in stages:
            for step in stage:
                words = [word.replace(str(self._output), "OUTPUT") for word in step.command]
                parts = json.dumps([words, before], default=str)
                self._keys[step.name] = hashlib.sha256(parts.encode()).hexdigest()[:16]
            before = [self._keys[step.name] for step in stage]
            numbered = list(enumerate(stage, number))
            todo.append([(i, step) for i, step in numbered if not self._is_done(step)])
            number += len(stage)
        for place, waiting in enumerate(todo):
            if waiting:
                later = [[step for _, step in stage] for stage in todo[place + 1 :] if stage]
                self._run_stage(waiting, later, number - 1)
                anything = True
        return anything

    def _is_done(self, step: Step) -> bool:
        noted = self._ledger.read(step.name, "done")
        there = step.makes is None or step.makes.exists()
        return there and noted.get("key") == self._keys[step.name]

    def _run_stage(self, waiting: Sequence[tuple[int, Step]], later: Stages, steps: int) -> None:
        running: list[_Running] = []
        try:
            for number, step in waiting:
                running.append(self._start(step, number))
            while running:
                time.sleep(0.2)
                for one in list(running):
                    pid, status, used = os.wait4(one.process.pid, os.WNOHANG)
                    if pid:
                        one.process.returncode = os.waitstatus_to_exitcode(status)
                        running.remove(one)
                        self._end(one, one.usage(used), steps)
                if running:
                    self._screen.progress(self._status(running, later, steps))
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                _, status, used = os.wait4(one.process.pid, 0)
                one.process.returncode = os.waitstatus_to_exitcode(status)
                self._note(one.step, "begun", one.usage(used))

    def _note(self, step: Step, state: str, spent: dict[str, float]) -> None:
        self._ledger.write(step.name, state, key=self._keys[step.name], spent=spent)

    def _status(self, running: Sequence[_Running], later: Stages, steps: int) -> str:
        now = time.monotonic()
        shares = {}
        for one in running:
            share = shares[one.step] = one.share(self.log_of(one.step))
            if one.goes_on and share is not None:
                one.goes_on = False
                self._time.went_on(one.step, share, now)
        left = clock(self._time.left(shares, later, now))
        which = " and ".join(str(one.number) for one in running)
        what = ", ".join(
            one.step.title + ("" if (share := shares[one.step]) is None else f" {share:.0%}")
            for one in running
        )
        return f"step {which} of {steps}, {left} left in all: {what}"

    def _start(self, step: Step, number: int) -> _Running:
        log, begun = self.log_of(step), self._ledger.read(step.name, "begun")
        goes_on = step.resumes and begun.get("key") == self._keys[step.name] and log.exists()
        spent = begun["spent"] if goes_on else {}
        if not goes_on and step.makes is not None:
            _remove(step.makes)
        self._note(step, "begun", spent)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab" if goes_on else "wb") as stream:
            size = stream.tell()
            process = subprocess.Popen(
                step.command,
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        now = time.monotonic()
        self._time.begin(step, now)
        return _Running(step, number, process, now, spent, size, goes_on)

    def _end(self, one: _Running, spent: dict[str, float], steps: int) -> None:
        step, log = one.step, self.log_of(one.step)
        if one.process.returncode != 0:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            self._note(step, "begun", spent)
            raise DemoError(
                f"{step.title}: {step.command[0]} failed with exit status "
                f"{one.process.returncode}. What it printed last:\n\n  "
                + "\n  ".join(last)
                + f"\n\nAll of it: {log}"
            )
        self._time.end(step, time.monotonic())
        self._note(step, "done", spent)
        self._screen.say(f"  {one.number}/{steps}  {step.title}: {clock(spent['seconds'])} min")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
