"""What the console commands share: how they are described, how they end, how they show progress."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

import alum_fairseq
from alum_fairseq.errors import UsageError, printable
from alum_fairseq.files import reporting_access_errors

# How a command ends, for scripts to look at; Python ends with 1 after any other error.
DONE = 0
WRONG_USAGE = 2  # as argparse
INTERRUPTED = 130  # as a shell

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_EXIT_STATUS = (
    "Exit status: 0; 2 if an option or an input is wrong, which one line on standard error names;\n"
    "130 if interrupted; 1 for any other error."
)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they were written, options in two columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def make_parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the look that all commands have."""
    parser = argparse.ArgumentParser(
        prog,
        description=description,
        epilog=f"{epilog}\n{_EXIT_STATUS}" if epilog else _EXIT_STATUS,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"alum_fairseq {alum_fairseq.__version__}"
    )
    return parser


def add_commands(parser: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    """Give a parser subcommands; returns what adds one, by name and description."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, description: str) -> argparse.ArgumentParser:
        brief = description.split("\n", 1)[0]
        return commands.add_parser(
            name,
            help=brief,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    return add


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a command and say how it ended, as an exit status.

    Wrong usage is one line on standard error; any other exception is shown whole.
    """
    program = os.path.basename(sys.argv[0])
    for chatty in ("fairseq", "hydra"):  # the one reports every file that it opens
        logging.getLogger(chatty).setLevel(logging.WARNING)
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
        _let_go_of_output()  # whoever read it (`head`) has enough
        return DONE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _let_go_of_output()
        print(f"{program}: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return WRONG_USAGE
    return DONE


def _let_go_of_output() -> None:
    """Write no more to standard output; Python would try, and complain, while it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hidden() -> bool:
    """Whether nobody looks: progress is for a terminal, unless the environment asks for it."""
    return not sys.stderr.isatty() and "ALUM_PROGRESS" not in os.environ


def counter(what: str, unit: str, total: int | None = None) -> tqdm:
    """A bar on standard error that is told by ``update(n)`` how far it is."""
    return tqdm(desc=what, unit=f" {unit}", total=total, file=sys.stderr, disable=_hidden())


def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """The items, with a bar on standard error that says how far it is and how long it takes."""
    return iter(tqdm(items, desc=what, total=total, file=sys.stderr, disable=_hidden()))


def say(message: str) -> None:
    """Tell the user something, on standard error, where it is not taken for a result."""
    print(message, file=sys.stderr, flush=True)
