"""The demo: runs its steps, and says in six lines what came of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import signal
import sys
from pathlib import Path
from typing import Any

import finetuning
import pretraining
from jobs import DemoError, Runner, Screen, script
from options import ROOT, SCALES, parse

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))

from console import folded

from alum_fairseq.files import whole_file

_MOST_THREADS = 4  # of each of two steps side by side; more bring little for small models
_INDENT = "    "


def _made_of() -> list[str]:
    """What results depend on besides the commands: the code that they run, and torch."""
    folders = (ROOT / "alum_fairseq", ROOT / "examples" / "common", ROOT / "examples" / "demo")
    code = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()
    return [digest, importlib.metadata.version("torch"), sys.version.split()[0]]


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def _run(output: Path, seed: int, scale: str, part: Any) -> None:
    threads = min(_MOST_THREADS, max(1, len(os.sched_getaffinity(0)) // 2))
    screen = Screen()
    runner = Runner(ROOT, output, screen, threads, _made_of())
    stages = part.stages(SCALES[scale], output, seed)
    commands = output / "commands.sh"
    with whole_file(commands) as aside:
        aside.write_text(script(stages, ROOT, output, threads), encoding="utf-8")
    screen.say(folded(f"All that it makes: {output}", _INDENT))
    screen.say(folded(f"The commands, as a script: {commands}", _INDENT))
    if not runner.run(stages):
        screen.say("Everything is done already.")
    screen.say()
    for line in part.closing(SCALES[scale], output, runner):
        screen.say(folded(line, _INDENT))


def main() -> int:
    """Run the demo; returns the exit status."""
    options = parse()
    output = options.output.absolute()
    os.chdir(ROOT)
    if output.is_relative_to(ROOT):  # shorter
        output = output.relative_to(ROOT)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, _stop)
    part = pretraining if options.pretraining else finetuning
    try:
        _run(output, options.seed, options.scale, part)
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; run it again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
