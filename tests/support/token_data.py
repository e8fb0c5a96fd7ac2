"""Questions and tagged sentences that a small model learns in seconds, in their published forms."""

from __future__ import annotations

import json
import random
from pathlib import Path

NAMES = ["anna", "bert", "cleo", "dora", "emil", "fritz", "gina", "hugo"]
PLACES = ["paris", "rome", "oslo", "bern"]
OTHERS = ["lives", "in", "where", "is", "."]


def write_vocabulary(folder: Path) -> Path:
    folder.mkdir()
    words = [*NAMES, *PLACES, *OTHERS]
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    return folder


def write_squad(path: Path, count: int, seed: int, unanswerable: bool = False) -> Path:
    """Where is everybody? Beside a name stands a place, and every second blank is double."""
    draw, paragraphs = random.Random(seed), []
    for number in range(count):
        names, places = draw.sample(NAMES, 4), draw.sample(PLACES, 4)
        pairs = zip(names, places, strict=True)
        context = " \u00a0. ".join(f"{name}  in {place}" for name, place in pairs)
        asked = number % 4
        start = context.index(names[asked]) + len(f"{names[asked]}  in ")
        question = {
            "id": f"q{seed}-{number}",
            "question": f"where is {names[asked]}",
            "answers": [{"text": places[asked], "answer_start": start}] * 2,
        }
        if unanswerable and number % 3 == 0:
            other = next(name for name in NAMES if name not in names)
            question |= {"question": f"where is {other}", "answers": [], "is_impossible": True}
        paragraphs.append({"context": context, "qas": [question]})
    document = {"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_conll(path: Path, count: int, seed: int) -> Path:
    """Names and places; one after the other is one entity."""
    draw, lines = random.Random(seed), ["-DOCSTART- -X- O", ""]
    for number in range(count):
        before = ""
        for word in draw.choices([*NAMES, *PLACES, *OTHERS * 3], k=3 + number % 5):
            kind = "per" if word in NAMES else "loc" if word in PLACES else ""
            tag = f"{'I' if kind == before else 'B'}-{kind}" if kind else "O"
            lines.append(f"{word} X {tag}")
            before = kind
        lines.append("  " if number % 2 else "")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
