"""fairseq's binarised data, checked before fairseq maps it into memory.

A split is a pair of files. In the format that ``fairseq-preprocess`` writes by default (``mmap``),
the index ``.idx`` holds, in little-endian order: 9 magic bytes, the version 1 (8 bytes), the code
of the tokens' type (1), the number N of examples (8), the length of each in tokens (4 N), and the
offset of each in ``.bin``, in bytes (8 N).
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
_OTHER_FORMATS = (b"TNTIDX\x00\x00", b"HUFFIDX\x00")  # first 8 bytes: cached, huffman
_HEADER = struct.Struct("<9sQBQ")
# numpy types of the tokens, by fairseq's codes.
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_CHUNK = 1 << 20  # number of examples or tokens that are checked together


@dataclass(frozen=True)
class BinarizedSplit:
    """A split of one input, or of the labels.

    Attributes:
        prefix: path of its files, without ``.idx`` and ``.bin``.
        sizes: number of tokens of each example, shape (N,).
        dtype: type of the tokens.
    """

    prefix: Path
    sizes: np.ndarray
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.sizes)

    def tokens(self) -> Iterator[np.ndarray]:
        """All tokens, one example after the other, in chunks."""
        path = _with(self.prefix, ".bin")
        whole = path.stat().st_size // self.dtype.itemsize  # without an incomplete last token
        tokens = np.memmap(path, self.dtype, "r", shape=(whole,))
        for begin in range(0, len(tokens), _CHUNK):
            yield tokens[begin : begin + _CHUNK]

    def check_tokens(self, first: int, end: int, what: str, others: tuple[int, ...] = ()) -> None:
        """Raise a UsageError unless every token is in ``range(first, end)`` or ``others``."""
        for tokens in self.tokens() if self.sizes.any() else ():
            wrong = ((tokens < first) | (tokens >= end)) & ~np.isin(tokens, others)
            if wrong.any():
                raise UsageError(
                    f"{_with(self.prefix, '.bin')} holds the number {tokens[wrong][0]}: {what} are "
                    f"from {first} to {end - 1}; make the data again"
                )


def read_split(prefix: Path) -> BinarizedSplit | None:
    """A split whose files are complete and agree with each other.

    Returns:
        The split; None for fairseq's other formats, which are not checked.

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
    if header[:8] in _OTHER_FORMATS:
        return None
    if magic != _MAGIC or version != 1 or code not in _TYPES:
        raise UsageError(
            f"{index} is not an index of binarised data: make it with fairseq-preprocess"
        )
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
        # Not `begin + ... > available`, which could overflow.
        if (
            (part < 0).any()
            or (begin < 0).any()
            or (begin > available - part.astype(np.int64) * dtype.itemsize).any()
        ):
            raise UsageError(
                f"{data} is cut short, or {index} is broken: an example lies outside of its "
                f"{available:,} bytes; make the data again"
            )
    return BinarizedSplit(prefix, sizes, dtype)


def read_inputs(data: Path, split: str, symbols: int) -> list[BinarizedSplit]:
    """The inputs of a split, of a dictionary with so many symbols: ``input0``, ``input1``, ...

    Those in fairseq's other formats are left out.

    Raises:
        UsageError: one is missing or broken, or their numbers of examples differ.
    """
    folders = [data / "input0"]
    while (more := data / f"input{len(folders)}").is_dir():
        folders.append(more)
    found = [each for folder in folders if (each := read_split(folder / split)) is not None]
    for each in found:
        each.check_tokens(0, symbols, f"the symbols of {each.prefix.parent / 'dict.txt'}")
        if len(each) != len(found[0]):
            raise UsageError(
                f"{each.prefix} has {len(each):,} examples, but {found[0].prefix} has "
                f"{len(found[0]):,}; make the data again"
            )
    return found


def read_label_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file of labels, each with its ``file:line``; a UsageError if none."""
    try:
        lines = existing_file(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: the text is not in UTF-8: {error}") from None
    return [(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]


def combined_splits(folder: Path, split: str, combine: bool) -> Iterator[str]:
    """The splits that fairseq reads as one: ``train``, and if it combines, ``train1`` and so on."""
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
