"""Questions and tagged sentences whose answers a checkpoint of random weights gives."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alum_fairseq.data.tables import TableFormat, read_rows
from alum_fairseq.predict import Predictor
from alum_fairseq.problems.span_prediction import label_of
from alum_fairseq.robustness.types import Example


def write_examples(path: Path, kind: str, examples: list[Example]) -> Path:
    """In the published form."""
    if kind == "tags":
        sentences = [zip(e.texts[0].split(), e.answer.split(), strict=True) for e in examples]
        text = "\n\n".join("\n".join(f"{w} {t}" for w, t in each) for each in sentences)
    else:
        questions = [
            {
                **{"id": example.name, "question": example.texts[0], "context": example.texts[1]},
                "answers": json.loads(example.answer),
            }
            for example in examples
        ]
        text = "\n".join(map(json.dumps, questions))
    path.write_text(text + "\n", encoding="utf-8")
    return path


def solve(case: Any, folder: Path) -> SimpleNamespace:
    """The case with the answers that the model gives, but for every fifth."""
    predictor = Predictor.load(case.path)
    problem = predictor.problem
    rows = list(read_rows(case.table, TableFormat(), problem.columns, problem.label_column))
    found = predictor.predict([row.texts for row in rows])
    examples = []
    for i, (row, said) in enumerate(zip(rows, found, strict=True)):
        wrong = i % 5 == 4
        if case.kind == "tags":
            tags = list(said.tags)
            tags[0] = problem.labels[(problem.labels.index(tags[0]) + wrong) % 5]
            answer = " ".join(tags)
        else:
            best = said.best[wrong]
            answer = label_of([(best.text, best.start)] if best.text else [])
        examples.append(Example(i, row.texts, answer, name=row.name or f"q{i}"))
    suffix = "conll" if case.kind == "tags" else "jsonl"
    table = write_examples(folder / f"solved-{case.kind}.{suffix}", case.kind, examples)
    rows = [dict(zip(problem.columns, example.texts, strict=True)) for example in examples]
    given = {"kind": case.kind, "path": case.path, "data": case.data, "table": table, "rows": rows}
    return SimpleNamespace(**given, examples=examples, predictor=predictor)
