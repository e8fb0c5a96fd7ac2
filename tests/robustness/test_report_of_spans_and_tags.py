"""alum-robustness on questions and on tags: the same parts, measured by their own metrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.solved import solve, write_examples
from support.untrained import TOKENS, make_token_case
from test_robustness import FEW, note_reports, robustness, without_wordnet
from torch import Tensor

from alum_fairseq.data.tables import TableFormat, read_rows
from alum_fairseq.predict.command import main as predict
from alum_fairseq.problems import Outputs, Right, SequenceTagging
from alum_fairseq.problems.span_prediction import em_and_f1, gold_answers
from alum_fairseq.problems.token_problem import IGNORED
from alum_fairseq.robustness.attacks.pgd import LOSS, ProjectedGradient, Target
from alum_fairseq.robustness.runner import _identity
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example

PARTS = {"clean", "linf", "l2", "noise", "greedy", "textbugger", "smoothness"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    folder = tmp_path_factory.mktemp("tokens")
    return {kind: solve(make_token_case(kind, folder), folder) for kind in TOKENS}


@pytest.fixture
def measure(
    cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SimpleNamespace]:
    """Run the command on a case; what its report is made of."""
    without_wordnet(monkeypatch)
    noted = note_reports(monkeypatch)

    def run(kind: str, **chosen: Any) -> SimpleNamespace:
        case = cases[kind]
        usual = {"path": case.path, "input": case.table, "output": tmp_path / f"out{len(noted)}"}
        done = robustness(**{**usual, **FEW, **chosen})
        assert done.status == 0, done.err
        return SimpleNamespace(**vars(noted[-1]), out=done.out, folder=usual["output"])

    return run


def values(found: SimpleNamespace) -> dict[str, float]:
    (name,) = (model["name"] for model in found.models)
    return {one["key"]: one["values"][name]["value"] for one in found.report["measures"]}


def judged(case: Any, example: Example, texts: list[str]) -> dict[str, Any]:
    """What the model says of texts, judged by the metric's own functions."""
    (said,) = case.predictor.predict([tuple(texts)])
    if case.kind == "tags":
        return {"correct": " ".join(said.tags) == example.answer, "prediction": " ".join(said.tags)}
    text = said.best[0].text
    em, f1 = em_and_f1(text, [answer for answer, _ in gold_answers(example.answer)])
    return {"correct": em == 1, "f1": pytest.approx(f1), "prediction": text}


@pytest.mark.parametrize("kind", TOKENS)
def test_every_part_measures(kind: str, cases: dict[str, Any], measure: Any) -> None:
    case, found = cases[kind], measure(kind, examples=0)
    assert {part.name for part in found.parts} == PARTS
    predictions = case.predictor.predict([example.texts for example in case.examples])
    answers = [example.answer for example in case.examples]
    scores = case.predictor.problem.scores(predictions, answers)
    got = values(found)
    right = [judged(case, e, list(e.texts))["correct"] for e in case.examples]
    assert got["clean.accuracy"] == pytest.approx(100 * sum(right) / len(right), rel=1e-5)
    assert 70 < got["clean.accuracy"] < 90
    assert got["clean.f1"] == pytest.approx(scores["f1"], rel=1e-5)
    assert ("clean.loss" in got) == (kind == "tags")  # of a question whose answer is long: infinite
    if kind == "tags":
        assert got["clean.words"] == pytest.approx(scores["accuracy"], rel=1e-5)
    else:
        assert got["clean.accuracy"] == pytest.approx(scores["em"], rel=1e-5)
    for name in ("noise.f1.0.3", "greedy.f1", "linf.area", "smoothness.gain", "attacks.mean"):
        assert got[name] is not None, name
    name = {"spans": "exact matches", "tags": "right sentences"}[kind]
    assert f"% {name}" in found.out
    for picture in ("overview", "linf"):
        assert f"{name} " in (found.folder / f"{picture}.svg").read_text().replace(" of", " ")
    assert "right answers" not in (found.folder / "report.md").read_text().partition("##")[0]


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [("spans", {}), ("spans", {"edit": [1, 2]}), ("tags", {})],
    ids=["question", "question and context", "tags"],
)
def test_attacks_on_words_leave_the_answer_right(
    kind: str, chosen: dict[str, Any], cases: dict[str, Any], measure: Any
) -> None:
    case = cases[kind]
    parts = ["noise", "greedy", "textbugger"]
    found = measure(kind, parts=parts, noise_rates=1, max_edits=1, max_queries=60, **chosen)
    changed = broken = 0
    for part in parts:
        for example, record in zip(found.examples[part], found.records[part][0], strict=True):
            of_kinds = record.values() if part == "noise" else [record]
            for one in of_kinds:
                texts = one["texts"]
                assert {name: one[name] for name in judged(case, example, texts)} == judged(
                    case, example, texts
                )
                changed += texts != list(example.texts)
                broken += one["edits"] > 0 and not one["correct"]
                if kind == "tags":
                    words = [text.split() for text in (example.texts[0], texts[0])]
                    tags = example.answer.split()
                    kept = [
                        old == new for old, new, t in zip(*words, tags, strict=True) if t != "O"
                    ]
                    assert all(kept)
                    assert one["words"] == len(tags)
                    continue
                assert all(text in texts[1] for text, _ in gold_answers(example.answer))
                if not chosen:
                    assert texts[1] == example.texts[1]
    assert changed > 5
    assert broken


@pytest.mark.parametrize("kind", TOKENS)
def test_f1_under_attack_is_that_of_the_attacked_texts(
    kind: str, cases: dict[str, Any], measure: Any
) -> None:
    problem = cases[kind].predictor.problem
    found = measure(kind, parts=["noise", "greedy"], noise_rates=1, attack_examples=0)
    records, examples = found.records["greedy"][0], found.examples["greedy"]
    said = cases[kind].predictor.predict([tuple(record["texts"]) for record in records])
    wanted = problem.scores(said, [example.answer for example in examples])["f1"]
    assert values(found)["greedy.f1"] == pytest.approx(wanted, rel=1e-5)
    kinds, examples = ("swap", "drop", "keyboard"), found.examples["noise"]
    texts = [record[f"{name} 1"]["texts"] for name in kinds for record in found.records["noise"][0]]
    said = cases[kind].predictor.predict([tuple(each) for each in texts])
    wanted = problem.scores(said, [example.answer for _ in kinds for example in examples])["f1"]
    assert values(found)["noise.f1.1"] == pytest.approx(wanted, rel=1e-5)


# Attacks on embeddings


def moved_outputs(case: Any, example: Example, delta: Tensor) -> Outputs:
    """The outputs when the embeddings of each input move, by a hook of torch's."""
    predictor = case.predictor
    pieces = predictor.pieces_of(example.texts)
    width = len(delta) // len(pieces)
    layer = predictor.model.encoder.sentence_encoder.layers[0]
    logits = []
    for piece, moved in zip(pieces, delta.split(width), strict=True):
        added = moved[: len(piece)].unsqueeze(1)

        def move(_: Any, args: Any, added: Tensor = added) -> Any:
            return (args[0] + added, *args[1:])

        hook = layer.register_forward_pre_hook(move)
        logits.append(predictor.score([piece.tokens])[0].float())
        hook.remove()
    return Outputs(example.texts, pieces, logits)


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_smallest_radius_breaks_and_less_does_not(
    kind: str, norm: str, cases: dict[str, Any]
) -> None:
    case = cases[kind]
    problem = case.predictor.problem
    subject = Subject(case.predictor, None, 512, 1, [])
    batches = list(subject.batches(sorted(case.examples, key=lambda e: -len(e.texts[-1]))))
    assert any(len(case.predictor.pieces_of(batch[0].texts)) > 1 for batch in batches)
    assert any(len(batch) > 1 for batch in batches)
    attack, broken = ProjectedGradient(norm, steps=8), 0
    for batch in batches:
        target = subject.target(batch)
        right = [problem.verdict(subject.predictor.logits([e.texts])[0], e.answer) for e in batch]
        margin = target.margin(target.clean, torch.arange(len(batch)))
        assert [bool(each > 0) for each in margin] == [verdict.correct for verdict in right]
        smallest = attack.smallest(target)
        for i, example in enumerate(batch):
            radius = float(smallest.radius[i])
            assert (radius == 0) == (not right[i].correct)
            if not 0 < radius < math.inf:
                continue
            delta = smallest.found.delta[i]
            said = problem.verdict(moved_outputs(case, example, delta), example.answer)
            assert not said.correct
            size = attack.ball.unit(*rms_of(target, i))
            longest = delta.abs().max() if norm == "linf" else delta.norm()
            assert float(longest) <= radius * float(size) * (1 + 1e-4)
            broken += 1
    assert broken > 10


def rms_of(target: Target, row: int) -> tuple[Tensor, Tensor]:
    """The root mean square of an example's coordinates, and how many there are."""
    kept = target.embeddings[row][target.mask[row]]
    return kept.pow(2).mean().sqrt(), torch.tensor(float(kept.numel()))


def test_of_a_linear_tagger_the_smallest_radius_is_that_of_the_weakest_word() -> None:
    """Its distance in closed form: the margin over the length of the difference of the weights."""
    torch.manual_seed(5)
    problem, weights = SequenceTagging(("O", "B-x", "I-x")), torch.randn(3, 4)
    embeddings = torch.randn(6, 5, 4)
    clean = embeddings @ weights.T
    tags = clean.argmax(-1)
    tags[:, 3:] = IGNORED  # no words

    def right(rows: Tensor) -> list[Right]:
        return [Right([], tags[row : row + 1]) for row in rows.tolist()]

    target = Target(
        lambda moved, rows: moved @ weights.T,
        embeddings,
        clean,
        torch.ones(6, 5, dtype=torch.bool),
        {LOSS: lambda outputs, rows: problem.attack_loss(outputs, right(rows))},
        lambda outputs, rows: problem.margins(outputs, right(rows)),
        list(range(6)),
    )
    attack = ProjectedGradient("l2", steps=10, restarts=1, objectives=(LOSS,))
    found = attack.smallest(target, precision=1.02)
    for row in range(6):
        distances = [
            float(embeddings[row, word] @ difference / difference.norm())
            for word in range(3)
            for other in range(3)
            if (difference := weights[tags[row, word]] - weights[other]).any()
        ]
        unit = float(attack.unit(target)[row])
        assert float(found.radius[row]) * unit == pytest.approx(min(distances), rel=0.05)


# Adversarial sets, and what is refused


def test_of_adversarial_squad_the_worst_variant_of_a_question_counts(
    cases: dict[str, Any], measure: Any, tmp_path: Path
) -> None:
    """AddSent's ids: those of SQuAD, and for each variant a suffix."""
    case, variants = cases["spans"], []
    for i, example in enumerate(case.examples[:12]):
        name = f"{i:024x}"
        texts = [example.texts[1] + more for more in ("", " anna in rome", " rome . gina in oslo")]
        for suffix, context in zip(("", "-high-conf", "-turk1"), texts[: 1 + i % 3], strict=False):
            pair = (example.texts[0], context)
            variants.append(Example(i, pair, example.answer, name=name + suffix))
    path = write_examples(tmp_path / "addsent.jsonl", "spans", variants)
    found = measure("spans", parts=["noise"], adversarial_set=f"AddSent={path}")
    scores: dict[str, list[tuple[float, float]]] = {}
    for example in variants:
        (said,) = case.predictor.predict([example.texts])
        gold = [answer for answer, _ in gold_answers(example.answer)]
        scores.setdefault(example.name[:24], []).append(em_and_f1(said.best[0].text, gold))
    em, f1 = (
        100 * sum(min(each[i] for each in of) for of in scores.values()) / len(scores)
        for i in (0, 1)
    )
    got = values(found)
    assert got["set:AddSent.worst.correct"] == pytest.approx(em, rel=1e-5)
    assert got["set:AddSent.worst.f1"] == pytest.approx(f1, rel=1e-5)
    assert got["set:AddSent.accuracy"] > em
    few = measure("spans", parts=["noise"], adversarial_set=f"AddSent={path}", examples=6)
    drawn = [example.name for example in few.examples["set:AddSent"]]
    whole = [example.name for example in variants if example.name[:24] in {n[:24] for n in drawn}]
    assert drawn == whole
    assert 1 <= len(drawn) <= 9


def test_the_null_threshold_decides_which_questions_have_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 30 questions, 10 have none. Far below all scores, no attack finds an answer."""
    noted = note_reports(monkeypatch)
    case, report = make_token_case("spans", tmp_path, unanswerable=True), tmp_path / "report"
    usual = {"path": case.path, "output": report, "parts": ["linf", "greedy"]}
    for threshold in (-1e5, 1e5):
        done = robustness(
            **{**FEW, **usual, "examples": 0, "attack_examples": 0}, null_threshold=threshold
        )
        assert done.status == 0, done.err
        said = f"scores more than {threshold:g} above the best span (--null-threshold)"
        assert said in (report / "report.md").read_text()
    never, always = noted
    assert values(never)["clean.accuracy"] == pytest.approx(100 / 3, rel=1e-5)
    assert values(never)["greedy.accuracy"] == values(never)["clean.accuracy"]
    assert values(never)["linf.accuracy.0.1"] == values(never)["clean.accuracy"]
    for found, has_answer in ((never, False), (always, True)):
        predictions = [each["prediction"] for each in found.records["clean"][0]]
        assert all(bool(prediction) == has_answer for prediction in predictions)


def test_what_a_problem_is_set_to_names_its_records(cases: dict[str, Any]) -> None:
    """Those of other windows, or of a shorter longest answer, are not taken for these."""
    case = cases["spans"]

    def identity(**settings: float) -> dict[str, Any]:
        predictor = copy.copy(case.predictor)
        predictor.problem = replace(predictor.problem, **settings)
        given = SimpleNamespace(tolerance=None, max_tokens=1000)
        return _identity(case.path, predictor, given, given)

    assert identity() == identity()
    others = ({"max_answer": 2}, {"doc_stride": 2}, {"null_threshold": 0.5})
    assert all(identity(**other) != identity() for other in others)


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        ("tags", {"textattack": "X"}, "--textattack is for classes, not for tags (O, "),
        ("spans", {"textattack": "X"}, "--textattack is for classes, not for spans of a text"),
        ("spans", {"tolerance": 1}, "--tolerance is for regression"),
        (
            "tags",
            {"null_threshold": 1},
            "--null-threshold is for questions, but the model has tags",
        ),
        ("spans", {"adversarial_set": "anli:{table}"}, "anli has classes, but the model has spans"),
        ("spans", {"input": "{other}"}, "its format is conll, but the model answers with spans"),
        ("tags", {"adversarial_set": "{other}"}, "the model answers with tags"),
        (
            "spans",
            {"adversarial_set": "{table}", "map_labels": "a=b"},
            "--map-labels is for classes, not for spans of a text",
        ),
        ("spans", {"edit": 3}, "--edit is 3: an example has 2 texts"),
        ("tags", {"input": None, "subset": "test"}, "has no subset test: it has train, valid"),
        ("tags", {"input": None, "columns": "a"}, "are those of --input, which is not given"),
    ],
)
def test_wrong_usage(
    kind: str, chosen: dict[str, Any], message: str, cases: dict[str, Any], tmp_path: Path
) -> None:
    case = cases[kind]
    other = tmp_path / ("x.json" if kind == "tags" else "x.conll")
    other.write_text("anna O\n")
    places = {"table": str(case.table), "other": str(other)}
    filled = {
        name: value.format(**places) if isinstance(value, str) else value
        for name, value in chosen.items()
    }
    usual = {"path": case.path, "input": case.table, "output": tmp_path / "out", "parts": "noise"}
    done = robustness(**{**usual, **FEW, **filled})
    assert done.status == 2
    assert message in done.err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_prepared_data_are_the_table(cases: dict[str, Any], tmp_path: Path, measure: Any) -> None:
    """Without --input, the development part that alum-prepare kept."""
    for kind in TOKENS:
        got = measure(kind, input=None, parts=["noise"], examples=0)
        whole = [(e.texts, e.answer) for e in got.examples["clean"]]
        problem = cases[kind].predictor.problem
        table = cases[kind].data.parent / f"{kind}.{'conll' if kind == 'tags' else 'json'}"
        rows = read_rows(table, TableFormat(), problem.columns, problem.label_column)
        assert whole == [(row.texts, row.label) for row in rows]


def test_predict_refuses_a_file_of_another_task(
    cases: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.conll"
    path.write_text("anna O\n")
    assert predict(["--path", str(cases["spans"].path), "--input", str(path)]) == 2
    assert (
        f"{path}: its format is conll, but the model answers with spans of a text: give another "
        "file, or --format"
    ) in capsys.readouterr().err
