"""What the examples show while they work: lines that stay, progress, commands to be copied."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import TextIO

_WIDEST = 100  # columns that are still easy to read


def shown(command: Sequence[str], indent: str = "    ") -> str:
    """A command line, broken into lines that can be copied to a shell as they are."""
    lines, line = [], ""
    for word in _phrases(command):
        if line and len(line) + len(word) > 94:
            lines.append(line)
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return " \\\n".join(indent + line for line in [*lines, line])


def _phrases(command: Sequence[str]) -> list[str]:
    """The words of a command line, each option together with its value."""
    phrases: list[str] = []
    for word in command:
        quoted = shlex.quote(word)
        takes_value = bool(phrases) and phrases[-1].startswith("--") and " " not in phrases[-1]
        if takes_value and not word.startswith("--"):
            phrases[-1] += " " + quoted
        else:
            phrases.append(quoted)
    return phrases


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Screen:
    """Lines that stay, and on a terminal one line below them that is overwritten."""

    def __init__(self, stream: TextIO | None = None, every: float = 20.0) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._every = every
        self._last = time.monotonic()

    def say(self, text: str = "") -> None:
        """Print lines that stay."""
        if self._live:
            self._stream.write("\r\033[K")
        self._stream.write(text + "\n")
        self._stream.flush()
        self._last = time.monotonic()

    def progress(self, text: str) -> None:
        """Show how far things are; where there is no terminal, as a line every now and then."""
        text = f"  {text}"[: shutil.get_terminal_size().columns - 1]
        if self._live:
            self._stream.write("\r\033[K" + text)
            self._stream.flush()
        elif time.monotonic() - self._last >= self._every:
            self.say(text)


def folded(text: str, indent: str = "") -> str:
    """A line as lines that fit the terminal, those after the first indented; no word is broken."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
