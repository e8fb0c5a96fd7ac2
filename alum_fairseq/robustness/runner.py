"""Runs parts on checkpoints; what was finished before is read from disk."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

import alum_fairseq
from alum_fairseq import cli
from alum_fairseq.predict import Predictor
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts import Part
from alum_fairseq.robustness.parts.part import Records
from alum_fairseq.robustness.store import Store, digest, text_digest
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record

CHUNK = 64  # examples; what is lost when a run is stopped
WORK = "work"


def run_parts(
    parts: Sequence[Part],
    data: Data,
    paths: Sequence[Path],
    load: Callable[[Path], Predictor],
    options: argparse.Namespace,
) -> tuple[dict[str, Records], list[dict[str, float]]]:
    """Run every part on every checkpoint, which ``load`` reads.

    Returns:
        The records by the names of the parts, and for each checkpoint the seconds of each part.
    """
    examples = {part.name: part.examples(data) for part in parts}
    records: dict[str, list[list[Record]]] = {part.name: [] for part in parts}
    seconds: list[dict[str, float]] = []
    total = len(paths) * sum(part.cost * len(examples[part.name]) for part in parts)
    with cli.counter("measuring", "passes", round(total)) as counter:
        for path in paths:
            predictor = load(path)
            given = (data.tolerance, options.max_tokens, options.seed, data.attacked)
            subject = Subject(predictor, *given)
            model = _identity(path, predictor, data, options)
            seconds.append({})
            for part in parts:
                chosen = examples[part.name]
                key = {**model, "part": part.name, "settings": part.settings}
                key["examples"] = text_digest([asdict(example) for example in chosen])
                store = Store(options.output / WORK, key)
                counter.set_description(f"{path.parent.name}: {part.name}")
                records[part.name].append(_run(part, subject, chosen, store, counter))
                seconds[-1][part.name] = round(sum(took for _, took in store.chunks.values()), 3)
    measured = {
        name: Records(data.problem, examples[name], found) for name, found in records.items()
    }
    return measured, seconds


def _run(
    part: Part, subject: Subject, examples: Sequence[Example], store: Store, counter: tqdm
) -> list[Record]:
    """The records of a part, those in the store and the others."""
    found: list[Record] = [{}] * len(examples)
    # The longest first, so that a batch has little padding.
    order = sorted(range(len(examples)), key=lambda i: -sum(map(len, examples[i].texts)))
    for number, begin in enumerate(range(0, len(order), CHUNK)):
        chunk = order[begin : begin + CHUNK]
        if number not in store.chunks:
            began = time.monotonic()
            made = part.run(subject, [examples[i] for i in chunk])
            store.add(number, made, time.monotonic() - began)
        for i, record in zip(chunk, store.chunks[number][0], strict=True):
            found[i] = record
        counter.update(round(part.cost * len(chunk)))
    return found


def _identity(
    path: Path, predictor: Predictor, data: Data, options: argparse.Namespace
) -> dict[str, Any]:
    """All that the records of a checkpoint depend on, besides part and examples."""
    return {
        "checkpoint": digest(path),
        "vocabulary": [digest(file) for file in predictor.checkpoint.vocabulary.files],
        "head": predictor.checkpoint.head,
        "problem": repr(predictor.problem),
        "tolerance": data.tolerance,
        "max_tokens": options.max_tokens,
        "device": str(predictor.device),
        "code": _code(),
        "versions": versions(),
    }


@cache
def _code() -> str:
    """Another version of what measures is another measurement."""
    files = sorted(Path(alum_fairseq.__file__).parent.rglob("*.py"))
    return text_digest([digest(file) for file in files])


def versions() -> dict[str, str]:
    """Of the software that numbers depend on."""
    found = {"alum_fairseq": alum_fairseq.__version__, "python": platform.python_version()}
    for name in ("fairseq", "torch", "numpy", "scipy", "nltk", "textattack"):
        for package in (name, f"{name}-fixed"):
            try:
                found[name] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
