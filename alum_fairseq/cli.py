"""What the console commands share: help, exit status and progress bars."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from tqdm import tqdm

import alum_fairseq
from alum_fairseq.compat.command_line import with_hint
from alum_fairseq.errors import UsageError, printable
from alum_fairseq.files import reporting_access_errors
from alum_fairseq.threads import cores, idle_cores

# Exit statuses; Python exits with 1 after any other error.
DONE = 0
WRONG_USAGE = 2  # like argparse
INTERRUPTED = 130  # like a shell

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_EXIT_STATUS = (
    "Exit status: 0; 2 if an option or an input is wrong, which one line on standard error names;\n"
    "130 if interrupted; 1 for any other error."
)


# Descriptions with their own line breaks, options in two columns.
_formatter = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=100)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        problem = ValueError(f"{with_hint(message, self)} (see {self.prog} --help)")
        self.exit(WRONG_USAGE, f"{self.prog}: error: {printable(problem)}\n")


def make_parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser in the style of all commands."""
    parser = _Parser(
        prog,
        description=description,
        epilog=f"{epilog}\n{_EXIT_STATUS}" if epilog else _EXIT_STATUS,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"alum_fairseq {alum_fairseq.__version__}"
    )
    return parser


def add_command(commands: Any, name: str, description: str) -> argparse.ArgumentParser:
    """Add a subcommand, in the style of all commands, to those of a parser."""
    return commands.add_parser(
        name,
        help=description.split("\n", 1)[0],
        description=description,
        formatter_class=_formatter,
        allow_abbrev=False,
    )


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status.

    A usage error is printed as one line on standard error; any other exception is raised.
    """
    program = os.path.basename(sys.argv[0])
    for name in ("fairseq", "hydra"):  # fairseq logs every file that it opens
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with reporting_access_errors():
            main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except UsageError as error:
        print(f"{program}: error: {printable(error)}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()  # the reader, such as `head`, has closed the pipe
        return DONE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_output()
        print(f"{program}: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return WRONG_USAGE
    return DONE


def choose_threads() -> None:
    """Let torch compute on as many threads as cores are idle, and say so if it is not all of them.

    A number that the user chose (``OMP_NUM_THREADS``) is left alone.
    """
    idle = idle_cores()
    if "OMP_NUM_THREADS" not in os.environ and idle < torch.get_num_threads():
        torch.set_num_threads(idle)
        say(
            f"threads: {idle}, since the other {cores() - idle} of {cores()} cores are busy (set "
            "OMP_NUM_THREADS for another number)"
        )


def _discard_output() -> None:
    """Redirect standard output to nowhere, or Python fails to flush it on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _no_progress() -> bool:
    """Whether to hide progress bars: off a terminal, unless ALUM_PROGRESS is set."""
    return not sys.stderr.isatty() and "ALUM_PROGRESS" not in os.environ


def counter(what: str, unit: str, total: int | None = None) -> tqdm:
    """A progress bar on standard error, to be advanced with ``update(n)``."""
    return tqdm(desc=what, unit=f" {unit}", total=total, file=sys.stderr, disable=_no_progress())


def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """The items, with a progress bar on standard error."""
    return iter(tqdm(items, desc=what, total=total, file=sys.stderr, disable=_no_progress()))


def say(message: str) -> None:
    """Print a message for the user on standard error; results go to standard output."""
    print(message, file=sys.stderr, flush=True)
