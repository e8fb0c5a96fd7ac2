"""Mutants of files: bytes at random places, and values at random places of what they hold."""

from __future__ import annotations

import copy
import io
import json
import math
import struct
from argparse import Namespace
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

# Bytes, sizes and values at which programs stumble.
_BYTES = [
    b"\x00",
    b"\xff",
    b"\n",
    b"\t",
    b'"',
    b"\r",
    b" ",
    b"\xef\xbb\xbf",
    b"\x80",
    b"{",
    b"\x1b",
]
_SIZES = [0, 1, 2, 127, 128, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


_VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**30, 0.5, -1.5, math.nan, math.inf, 1e300),
    *(
        "",
        "x",
        "0",
        "a\nb",
        "\x1b[2J",
        "../../x",
        "${oc.env:HOME}",
        "word " * 300,
        "\u2581\U0001f600",
    ),
    *([], {}, [[]], {"x": []}, ["x", 1], _deep(50), _deep(3000)),
]


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """A mutant of any file."""
    mutant = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(_BYTE_RULES)(mutant, random)
    return bytes(mutant)


def _place(mutant: bytearray, random: Random) -> int:
    """More often in the first kilobyte, and in the last, where headers and indices are."""
    size = max(1, len(mutant))
    near = random.randrange(min(size, 1024))
    return random.choice((near, size - 1 - near, random.randrange(size)))


def _block(mutant: bytearray, random: Random) -> slice:
    begin = _place(mutant, random)
    return slice(begin, begin + random.choice((1, 2, 4, 8, 16, 64, 512, 4096)))


def _flip(mutant: bytearray, random: Random) -> None:
    place = _place(mutant, random)
    if place < len(mutant):
        mutant[place] ^= 1 << random.randrange(8)


def _cut(mutant: bytearray, random: Random) -> None:
    del mutant[_place(mutant, random) :]


def _zero(mutant: bytearray, random: Random) -> None:
    block = _block(mutant, random)
    mutant[block] = bytes(len(mutant[block]))


def _remove(mutant: bytearray, random: Random) -> None:
    del mutant[_block(mutant, random)]


def _repeat(mutant: bytearray, random: Random) -> None:
    block = _block(mutant, random)
    mutant[block.start : block.start] = mutant[block] * random.choice((1, 1, 10))


def _move(mutant: bytearray, random: Random) -> None:
    source, target = _block(mutant, random), _block(mutant, random)
    mutant[target] = mutant[source]


def _insert(mutant: bytearray, random: Random) -> None:
    place = _place(mutant, random)
    mutant[place:place] = random.choice(_BYTES)


def _resize(mutant: bytearray, random: Random) -> None:
    """A number that may be the size of something becomes another."""
    kind = random.choice(("<B", "<H", "<I", "<Q", ">I", ">Q"))
    number = random.choice(_SIZES) % 256 ** struct.calcsize(kind)
    place = _place(mutant, random)
    mutant[place : place + struct.calcsize(kind)] = struct.pack(kind, number)


_BYTE_RULES: list[Callable[[bytearray, Random], None]] = [
    *(_flip, _flip, _cut, _zero, _remove, _repeat, _move, _insert, _resize, _resize),
]


# Values within values


def _children(value: Any) -> list[Any]:
    if isinstance(value, Namespace):
        return list(vars(value))
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def mutate_value(value: Any, random: Random, odd: Callable[[Any, Random], Any]) -> Any:
    """A copy, with changes at a few places.

    Args:
        value: of dictionaries, lists and Namespaces.
        random: what is drawn from.
        odd: makes another value of one that has nothing within.
    """
    mutant = {"": copy.deepcopy(value)}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        _change_somewhere(mutant, random, odd)
    return mutant[""]


def _change_somewhere(root: Any, random: Random, odd: Callable[[Any, Random], Any]) -> None:
    at, keys = root, [""]
    while True:
        holder = vars(at) if isinstance(at, Namespace) else at
        key = random.choice(keys)
        keys = _children(holder[key])
        if not keys or (at is not root and random.random() < 0.15):
            break
        at = holder[key]
    if at is root and isinstance(root[""], dict | list) and keys:
        return
    rule = random.random()
    if rule < 0.15:
        del holder[key]
    elif rule < 0.25 and isinstance(holder, dict):
        holder[random.choice(("", "x", "weight", f"{key}.0", str(key)[:-1]))] = holder.pop(key)
    elif rule < 0.35 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif rule < 0.4 and isinstance(holder, dict):
        holder[key] = holder  # within itself
    else:
        holder[key] = odd(holder[key], random)


def odd_value(value: Any, random: Random) -> Any:
    """Something else instead of a value; of tensors often a tensor."""
    if isinstance(value, Tensor) and random.random() < 0.7:
        return random.choice(_TENSOR_RULES)(value)
    if type(value) is int and random.random() < 0.5:
        return random.choice((value + 1, value - 1, -value, value * 1000, 0, 2**40))
    return copy.deepcopy(random.choice(_VALUES))


_TENSOR_RULES: list[Callable[[Tensor], Any]] = [
    lambda t: t[:-1],
    lambda t: t[:0],
    lambda t: t.unsqueeze(0),
    lambda t: t.flatten(),
    lambda t: t.flatten()[0],
    lambda t: t.t() if t.dim() == 2 else t.repeat(2),
    lambda t: t.half(),
    lambda t: t.double(),
    lambda t: t.to(torch.int64),
    lambda t: t.bool(),
    lambda t: t.to(torch.complex64),
    lambda t: t * math.nan,
    lambda t: t * math.inf,
    lambda t: t.to("meta"),
    lambda t: t.float().to_sparse(),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: t.flatten()[:1].expand(2**40),
    lambda t: t.flatten()[:1].expand(2**20, 2**20),
    lambda t: [t],
    lambda t: t.numel(),
    torch.nn.Parameter,
]


def mutate_checkpoint(content: bytes, random: Random) -> bytes:
    """A mutant of what torch saved, whole and readable as such."""
    state = mutate_value(torch.load(io.BytesIO(content)), random, odd_value)
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=random.random() < 0.5)
    return stream.getvalue()


def mutate_json(content: bytes, random: Random) -> bytes:
    """A mutant of JSON, or of JSON-lines, that still is."""
    lines = content.decode().splitlines()
    try:
        values: list[Any] = [json.loads(content)]
    except ValueError:
        values = [json.loads(line) for line in lines]
    mutant = mutate_value(values, random, odd_value)
    try:
        texts = [json.dumps(value) for value in mutant]
    except (ValueError, RecursionError):  # within itself, or deep
        texts = ["[" * 100_000]
    return "\n".join(texts).encode()


def mutate_lines(content: bytes, random: Random) -> bytes:
    """A mutant of a text of lines and fields."""
    lines = content.split(b"\n")
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(lines))
        fields = lines[place].split(random.choice((b"\t", b",", b" ")))
        field = random.randrange(len(fields))
        text = random.choice((*_BYTES, b"", b"word " * 5000, b"<s> </s> <mask>", b"1e999", b"nan"))
        lines[place] = random.choice(
            (
                text,
                text.join(fields),
                b"\t".join([*fields[:field], text, *fields[field + 1 :]]),
                b" ".join([*fields[:field], text, *fields[field + 1 :]]),
                b"\n".join([lines[place]] * 3),
                lines[random.randrange(len(lines))],
            )
        )
    return b"\n".join(lines)
