"""fairseq's binarised data, looked at before fairseq maps it into memory.

A split is a pair of files. Of the kind that ``fairseq-preprocess`` writes today (``mmap``), the
index ``.idx`` holds, in little-endian order: 9 bytes that say so, the version 1 (8 bytes), the code
of the tokens' type (1), the number N of examples (8), the length of each in tokens (4 N), and where
each begins in ``.bin``, in bytes (8 N).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, existing_folder

_MAGIC = b"MMIDIDX\x00\x00"
_OTHER_KINDS = (b"TNTIDX\x00\x00", b"HUFFIDX\x00")  # the first 8 bytes
_HEADER = struct.Struct("<9sQBQ")
# Codes of the types that tokens have.
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_CHUNK = 1 << 20  # examples that are looked at together


@dataclass(frozen=True)
class Split:
    """A split of one text, or of the labels.

    Attributes:
        prefix: the path of its files, without ``.idx`` and ``.bin``.
        sizes: the number of tokens of each example, N.
        dtype: of the tokens.
    """

    prefix: Path
    sizes: np.ndarray
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.sizes)

    def tokens(self) -> Iterator[np.ndarray]:
        """All tokens, one example after the other, in pieces."""
        path = _with(self.prefix, ".bin")
        whole = path.stat().st_size // self.dtype.itemsize  # what is left over is nobody's
        tokens = np.memmap(path, self.dtype, "r", shape=(whole,))
        for begin in range(0, len(tokens), _CHUNK):
            yield tokens[begin : begin + _CHUNK]

    def check_tokens(self, first: int, end: int, what: str, others: tuple[int, ...] = ()) -> None:
        """Make sure that all tokens are in a range, or among some others.

        Args:
            first: the least that a token may be.
            end: the least that is too large.
            what: that tokens are.
            others: tokens that are allowed besides.

        Raises:
            UsageError: one is not.
        """
        for tokens in self.tokens() if self.sizes.any() else ():
            wrong = ((tokens < first) | (tokens >= end)) & ~np.isin(tokens, others)
            if wrong.any():
                raise UsageError(
                    f"{_with(self.prefix, '.bin')} holds the number {tokens[wrong][0]}: {what} are "
                    f"from {first} to {end - 1}; make the data again"
                )


def read_split(prefix: Path) -> Split | None:
    """Look at a split: that its files are whole, and fit each other.

    Returns:
        The split; None if it is of one of fairseq's older kinds, which are not looked into.

    Raises:
        UsageError: a file is missing, broken or cut short.
    """
    index, data = (_with(prefix, suffix) for suffix in (".idx", ".bin"))
    _require(prefix)
    if index.stat().st_size < _HEADER.size:
        raise UsageError(f"{index} is cut short: make the data again")
    with index.open("rb") as stream:
        header = stream.read(_HEADER.size)
    magic, version, code, examples = _HEADER.unpack(header)
    if header[:8] in _OTHER_KINDS:
        return None
    if magic != _MAGIC or version != 1 or code not in _TYPES:
        raise UsageError(f"{index} is no index of binarised data: make it with fairseq-preprocess")
    if index.stat().st_size != _HEADER.size + 12 * examples:
        raise UsageError(
            f"{index} is cut short, or broken: for {examples:,} examples it should have "
            f"{_HEADER.size + 12 * examples:,} bytes, not {index.stat().st_size:,}; make the data "
            "again"
        )
    if not examples:
        raise UsageError(f"{prefix} has no examples")
    sizes = np.memmap(index, "<i4", "r", _HEADER.size, (examples,))
    begins = np.memmap(index, "<i8", "r", _HEADER.size + 4 * examples, (examples,))
    dtype, available = np.dtype(_TYPES[code]), data.stat().st_size
    for at in range(0, examples, _CHUNK):
        part, begin = sizes[at : at + _CHUNK], begins[at : at + _CHUNK]
        # Not `begin + ... > available`, which could pass the largest number.
        if (
            (part < 0).any()
            or (begin < 0).any()
            or (begin > available - part.astype(np.int64) * dtype.itemsize).any()
        ):
            raise UsageError(
                f"{data} is cut short, or {index} is broken: an example lies outside of its "
                f"{available:,} bytes; make the data again"
            )
    return Split(prefix, sizes, dtype)


def read_texts(data: Path, split: str, symbols: int) -> list[Split]:
    """Look at the texts of a split: ``input0``, ``input1``, ..., as far as they go.

    Args:
        data: the folder of ``input0``.
        split: such as ``train``.
        symbols: of the dictionary.

    Returns:
        One for each; without those of fairseq's older kinds.

    Raises:
        UsageError: one is missing or broken, or they are not equally many.
    """
    folders = [data / "input0"]
    while (more := data / f"input{len(folders)}").is_dir():
        folders.append(more)
    found = [each for folder in folders if (each := read_split(folder / split)) is not None]
    for text in found:
        text.check_tokens(0, symbols, f"the symbols of {text.prefix.parent / 'dict.txt'}")
        if len(text) != len(found[0]):
            raise UsageError(
                f"{text.prefix} has {len(text):,} examples, but {found[0].prefix} has "
                f"{len(found[0]):,}; make the data again"
            )
    return found


def labels_may_lack(split: str) -> bool:
    """Whether it is a split of which nobody may know the labels."""
    return split.startswith("test")


def text_labels(path: Path) -> list[tuple[str, str]]:
    """The labels that are text, a line each: its place, and what it says.

    Raises:
        UsageError: there is no such file, or it is no text.
    """
    try:
        lines = existing_file(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: the text is not in UTF-8: {error}") from None
    return [(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]


def parts_of(folder: Path, split: str, combine: bool) -> Iterator[str]:
    """The splits that fairseq reads as one: ``train``, and where it combines ``train1``, ..."""
    yield split
    for number in count(1) if combine else ():
        if not (folder / f"{split}{number}.idx").is_file():
            return
        yield f"{split}{number}"


def _require(prefix: Path) -> None:
    existing_folder(prefix.parent)
    index = _with(prefix, ".idx")
    if not index.is_file():
        there = sorted(path.stem for path in prefix.parent.glob("*.idx"))
        raise UsageError(
            f"{prefix.parent} has no subset {prefix.name}: it has {', '.join(there) or 'none'}"
        )
    existing_file(_with(prefix, ".bin"))


def _with(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)
