"""Spans and tags: the metrics are the reference's, and right and wrong are what they say."""

from __future__ import annotations

import itertools
import json
import random
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from alum_fairseq.errors import UsageError
from alum_fairseq.problems import (
    Outputs,
    Piece,
    PieceOf,
    SequenceTagging,
    SpanPrediction,
    TokenProblem,
)
from alum_fairseq.problems.span_prediction import em_and_f1, label_of
from alum_fairseq.problems.token_problem import IGNORED

WORDS = [
    "The",
    "the",
    "a",
    "an",
    "cat",
    "cats",
    "sat,",
    "sat",
    "on",
    "mat.",
    "Mat's",
    "U.S.",
    "3,141",
    "3.141",
    "café",
    "☃",
    "-",
]


def piece_of(text: str, words: int, first: int = 0, question: int = 3) -> Piece:
    """A piece whose tokens are some of the words of a text."""
    spans = [match.span() for match in re.finditer(r"\S+", text)][first : first + words]
    before = torch.tensor([0, *range(10, 10 + question), 2, 2])
    return Piece(before, torch.arange(20, 20 + len(spans)), torch.tensor([2]), torch.tensor(spans))


# ------------------------------------------------------------------------------------ SQuAD


def test_em_and_f1_are_those_of_torchmetrics() -> None:
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    draw = random.Random(3)
    for _ in range(300):
        words = [draw.choices(WORDS, k=draw.randrange(1, 6)) for _ in range(4)]
        said, *answers = (" ".join(each) for each in words)
        said = draw.choice([said, answers[0].upper(), answers[1] + "!"])
        if any(not set(re.findall(r"\w+", text.lower())) - {"the", "a", "an"} for text in answers):
            continue  # 1.1's script, torchmetrics', knows no empty answer
        if not set(re.findall(r"\w+", said.lower())) - {"the", "a", "an"}:
            continue
        gold = {"text": answers, "answer_start": [0] * len(answers)}
        theirs = squad([{"prediction_text": said, "id": "1"}], [{"answers": gold, "id": "1"}])
        em, f1 = em_and_f1(said, answers)
        assert 100 * em == float(theirs["exact_match"])
        assert 100 * f1 == pytest.approx(float(theirs["f1"]), abs=1e-4)


def test_without_an_answer_the_empty_one_is_right() -> None:
    assert em_and_f1("", []) == (1, 1)
    assert em_and_f1("cat", []) == (0, 0)
    assert em_and_f1("", ["cat"]) == (0, 0)
    assert em_and_f1("The.", []) == (1, 1)


def by_trying(records: list[tuple[float, ...]]) -> dict[str, float]:
    """EM and F1 with the best of all thresholds, by trying every one."""
    questions: dict[float, list[tuple[float, ...]]] = {}
    for number, *rest in records:
        questions.setdefault(number, []).append(tuple(rest))
    found = []
    for pieces in questions.values():
        best = max(pieces, key=lambda piece: piece[0])
        found.append((min(piece[1] for piece in pieces) - best[0], *best[2:]))
    tried = []
    for threshold in [*(each[0] for each in found), min(each[0] for each in found) - 1]:
        chosen = [each[3:] if each[0] > threshold else each[1:3] for each in found]
        em, f1 = (100 * sum(each[i] for each in chosen) / len(chosen) for i in (0, 1))
        tried.append({"f1": f1, "em": em})
    return max(tried, key=lambda each: each["f1"])


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_threshold(ties: bool) -> None:
    draw = random.Random(5)
    for size in (1, 2, 3, 20):
        for _ in range(20):
            records = []
            for number in range(size):
                none = draw.random() < 0.4
                for _ in range(draw.randrange(1, 4)):
                    scores = [draw.randrange(4) if ties else draw.gauss(0, 1) for _ in range(2)]
                    f1 = 0.0 if none else draw.random()
                    records.append((number, *scores, float(f1 > 0.5), f1, float(none), float(none)))
            draw.shuffle(records)
            if ties:  # of two pieces with the best span alike, the first is taken
                records = list({record[:2]: record for record in reversed(records)}.values())
            wanted = by_trying(records)
            found = SpanPrediction.summary(torch.tensor(records, dtype=torch.float64))
            assert found["f1"] == pytest.approx(wanted["f1"])
            above = [
                min(each[2] for each in of) - max(each[1] for each in of)
                for _, group in itertools.groupby(sorted(records), key=lambda each: each[0])
                for of in [list(group)]
            ]
            best = {
                number: max(
                    (each for each in records if each[0] == number), key=lambda each: each[1]
                )
                for number in {each[0] for each in records}
            }
            numbers = sorted(best)
            chosen = [
                best[n][5:] if a > found["null_threshold"] else best[n][3:5]
                for n, a in zip(numbers, above, strict=True)
            ]
            assert found["f1"] == pytest.approx(100 * sum(each[1] for each in chosen) / size)
            assert found["em"] == pytest.approx(100 * sum(each[0] for each in chosen) / size)


def test_where_all_have_an_answer_there_is_no_threshold() -> None:
    records = [(0, 1.0, -torch.inf, 1.0, 1.0, 0.0, 0.0), (1, 2.0, -torch.inf, 0.0, 0.5, 0.0, 0.0)]
    assert SpanPrediction.summary(torch.tensor(records)) == {"em": 50.0, "f1": 75.0}


# ------------------------------------------------------------------------------- best spans


def slowly(problem: SpanPrediction, outputs: Outputs) -> tuple[str, float]:
    """The best span of all, by trying every one; and how much higher none scores."""
    best, text = -float("inf"), ""
    for piece, logits in zip(outputs.pieces, outputs.logits, strict=True):
        for first in range(len(piece.body)):
            for last in range(first, min(first + problem.max_answer, len(piece.body))):
                score = float(logits[piece.first + first, 0] + logits[piece.first + last, 1])
                if score > best:
                    span = slice(int(piece.ranges[first, 0]), int(piece.ranges[last, 1]))
                    best, text = score, outputs.texts[-1][span]
    return text, min(float(logits[0].sum()) for logits in outputs.logits) - best


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_best_span_of_all_pieces(unanswerable: bool) -> None:
    text = " ".join(f"w{i}" for i in range(12))
    problem = SpanPrediction(max_answer=4, unanswerable=unanswerable, n_best=3)
    answers = set()
    for seed in range(20):
        torch.manual_seed(seed)
        pieces = [piece_of(text, 8), piece_of(text, 8, first=4)]
        outputs = Outputs(("q", text), pieces, [torch.randn(len(piece), 2) for piece in pieces])
        for logits in outputs.logits:
            logits[0] += 2 * (seed % 3)
        wanted, null = slowly(problem, outputs)
        found = problem.prediction(outputs)
        said = [span.text for span in found.best]
        assert len(set(said)) == len(said) == 3
        assert sum(span.score for span in found.best) == pytest.approx(1)
        answers.add(bool(said[0]))
        if unanswerable:
            assert found.null_score == pytest.approx(null, abs=1e-5)
            assert said[0] == ("" if null > 0 else wanted)
            assert ("" in said) or found.best[-1].score > 0
        else:
            assert (said[0], found.null_score) == (wanted, -torch.inf)
            assert "" not in said
        assert problem.entries(found)["answer"] == said[0]
        json.dumps(problem.entries(found))
    assert answers == ({True, False} if unanswerable else {True})


def test_the_threshold_decides() -> None:
    text = "one two"
    outputs = Outputs(("q", text), [piece_of(text, 2)], [torch.zeros(9, 2)])
    outputs.logits[0][0] = 1.0  # none scores 2, spans 0
    outputs.logits[0][7] = -1.0  # and those that begin or end with the second word less
    for threshold, answer in ((1.9, ""), (2.0, "one"), (2.1, "one")):
        problem = SpanPrediction(unanswerable=True, null_threshold=threshold)
        assert problem.prediction(outputs).best[0].text == answer


def test_a_context_without_tokens() -> None:
    outputs = Outputs(("q", " "), [piece_of(" ", 0)], [torch.zeros(7, 2)])
    outputs.pieces[0].ranges.resize_(0, 2)
    for unanswerable in (False, True):
        problem = SpanPrediction(unanswerable=unanswerable)
        found = problem.prediction(outputs)
        assert [span.text for span in found.best] == [""]
        row = PieceOf(outputs.pieces[0], 0, ("q", " "), label_of([]))
        records = problem.records(outputs.logits[0].unsqueeze(0), [row])
        assert problem.summary(records)["em"] == 100.0
        verdict = problem.verdict(outputs, label_of([]))
        assert verdict.correct


# ------------------------------------------------------------------------------------- tags

SCHEMES = {
    "BIO": ["O", "B-per", "I-per", "B-loc", "I-loc"],
    "IOB1": ["O", "I-per", "B-per", "I-loc"],
    "BIOES": ["O", *(f"{p}-{t}" for t in ("per", "a-b") for p in "BIES")],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entity_scores_are_seqevals(scheme: str) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    warnings.simplefilter("ignore")  # of what has no entities
    labels, draw = SCHEMES[scheme], random.Random(7)
    problem = SequenceTagging(tuple(labels))
    for _ in range(60):
        right = [draw.choices(labels, k=draw.randrange(1, 9)) for _ in range(draw.randrange(1, 6))]
        said = [[draw.choice([tag, tag, draw.choice(labels)]) for tag in tags] for tags in right]
        pairs = list(zip(said, right, strict=True))
        outputs = [outputs_of(problem, tags) for tags, _ in pairs]
        answers = [" ".join(tags) for tags in right]
        found = problem.scores([problem.prediction(each) for each in outputs], answers)
        wanted = {
            name: 100 * getattr(metrics, f"{name}_score")(right, said)
            for name in ("accuracy", "f1", "precision", "recall")
        }
        assert found == pytest.approx(wanted)
        records = torch.cat(
            [
                problem.records(
                    each.logits[0].unsqueeze(0), [PieceOf(each.pieces[0], i, each.texts, answer)]
                )
                for i, (each, answer) in enumerate(zip(outputs, answers, strict=True))
            ]
        )
        shuffled = records[torch.randperm(len(records))]
        assert problem.summary(shuffled) == pytest.approx(wanted)
        counts = [problem.verdict(e, a).details for e, a in zip(outputs, answers, strict=True)]
        said_, true, both = (sum(c[name] for c in counts) for name in ("said", "true", "both"))
        assert 200 * both / max(said_ + true, 1) == pytest.approx(wanted["f1"])


def outputs_of(problem: SequenceTagging, tags: list[str]) -> Outputs:
    """What a model says that is sure of these tags."""
    text = " ".join("word" for _ in tags)
    piece = piece_of(text, len(tags), question=0)
    logits = torch.zeros(len(piece), len(problem.labels))
    for place, tag in enumerate(tags):
        logits[piece.first + place, problem.labels.index(tag)] = 9.0
    return Outputs((text,), [piece], [logits])


def test_parts_of_speech_have_accuracy_alone() -> None:
    problem = SequenceTagging(("NOUN", "VERB"))
    outputs = outputs_of(problem, ["NOUN", "VERB", "NOUN"])
    assert problem.scores([problem.prediction(outputs)], ["NOUN NOUN NOUN"]) == {
        "accuracy": pytest.approx(200 / 3)
    }
    row = PieceOf(outputs.pieces[0], 0, outputs.texts, "NOUN NOUN NOUN")
    records = problem.records(outputs.logits[0].unsqueeze(0), [row])
    assert problem.summary(records) == {"accuracy": pytest.approx(200 / 3)}


def test_tags_of_the_training_data() -> None:
    assert SequenceTagging().settled(["O B-x", "I-x O"]).labels == ("O", "B-x", "I-x")
    with pytest.raises(UsageError, match="every word has the tag O"):
        SequenceTagging().settled(["O O"])
    with pytest.raises(UsageError, match="the tag 'B-y' is none of the data's"):
        SequenceTagging(("O", "B-x")).answer("O B-y")


# ------------------------------------------------------------- right and wrong, for attacks


def cases() -> list[tuple[TokenProblem, Outputs, str]]:
    text = "one two three four two five"
    spans = [piece_of(text, 4), piece_of(text, 4, first=2)]
    span = SpanPrediction(max_answer=3)
    tags = SequenceTagging(("O", "B-x", "I-x"))
    torch.manual_seed(11)
    found: list[tuple[TokenProblem, Outputs, str]] = []
    for seed in range(12):
        logits = [2 * torch.randn(len(piece), 2) for piece in spans]
        logits[0][7] += 6 * (seed % 3 == 1)
        logits[0][0] += 9 * (seed % 3 == 2)
        logits[1][0] += 9 * (seed % 3 == 2)
        for problem, label in (
            (span, label_of([("two", 4)])),
            (SpanPrediction(max_answer=3, unanswerable=True), label_of([("two", 4)])),
            (SpanPrediction(max_answer=3, unanswerable=True), label_of([])),
        ):
            found.append((problem, Outputs(("q", text), spans, logits), label))
        piece = piece_of("one two", 2, question=0)
        tokens = torch.randn(len(piece), 3)
        tokens[piece.first, 1] += 6 * (seed % 3 == 1)
        tokens[piece.first + 1, 0] += 6 * (seed % 3 == 1)
        outputs = Outputs(("one two",), [piece], [tokens])
        found.append((tags, outputs, "B-x O"))
    return found


def test_the_margin_is_negative_where_the_answer_is_wrong() -> None:
    outcomes = set()
    for problem, outputs, label in cases():
        verdict = problem.verdict(outputs, label)
        right = problem.right_of(outputs.pieces, outputs.texts, label)
        predictions = problem.of_outputs(outputs, right).requires_grad_()
        margin = problem.margins(predictions, [right]).amin(1)
        assert bool(margin > 0) == verdict.correct
        loss = problem.loss(predictions, [right])
        assert float(loss.detach()) == pytest.approx(verdict.loss)
        assert loss > 0
        climbed = problem.attack_loss(predictions, [right])
        for value in (loss, climbed, margin):
            (gradient,) = torch.autograd.grad(value.sum(), predictions, retain_graph=True)
            assert gradient.isfinite().all()
            assert gradient.any()
        outcomes.add((problem, verdict.correct))
    assert len(outcomes) == 2 * len({problem for problem, _ in outcomes})


def test_attacks_see_what_is_in_play() -> None:
    for problem, outputs, label in cases()[:4]:
        right = problem.right_of(outputs.pieces, outputs.texts, label)
        clean = problem.of_outputs(outputs, right)
        moved = [logits.clone() for logits in outputs.logits]
        for piece, logits in zip(outputs.pieces, moved, strict=True):
            logits[1 : piece.first] += 5
            logits[-1] -= 5
        other = Outputs(outputs.texts, outputs.pieces, moved)
        assert torch.equal(problem.of_outputs(other, right), clean)
        assert problem.verdict(other, label) == problem.verdict(outputs, label)


# ------------------------------------------------------------------------------- the batch


def sample_of(tokens: list[list[int]]) -> dict[str, Any]:
    return {"net_input": {"src_tokens": torch.tensor(tokens)}}


def test_the_loss_of_spans_is_huggingfaces() -> None:
    """Mean of two cross entropies, as ``RobertaForQuestionAnswering`` has it."""
    sample = sample_of([[0, 5, 2, 2, 6, 7, 8, 2], [0, 5, 2, 2, 6, 2, 1, 1]])
    outputs = torch.randn(2, 8, 2)
    problem = SpanPrediction()
    logits = problem.logits_of([outputs], sample)
    loss, count = problem.token_loss(logits, torch.tensor([[4, 6], [0, 0]]))
    wanted = torch.zeros(())
    for row, places, (start, end) in ((0, [0, 4, 5, 6], (1, 3)), (1, [0, 4], (0, 0))):
        for which, target in ((0, start), (1, end)):
            wanted -= outputs[row, places, which].log_softmax(0)[target] / 2
    torch.testing.assert_close(loss, wanted)
    assert count == 2
    assert torch.equal(problem.weights(torch.tensor([]), logits, 1), torch.full((2, 2), 0.5))


def test_the_loss_of_tags() -> None:
    problem = SequenceTagging(("O", "B-x", "I-x"))
    logits = torch.randn(2, 3, 3)
    target = torch.tensor([[IGNORED, 1, IGNORED], [IGNORED, 2, 0]])
    loss, count = problem.token_loss(logits, target)
    chosen: Tensor = logits.log_softmax(-1)
    torch.testing.assert_close(loss, -(chosen[0, 1, 1] + chosen[1, 1, 2] + chosen[1, 2, 0]))
    assert int(count) == 3
    assert problem.weights(target, logits, 1).tolist() == [[0, 1, 0], [0, 1, 1]]


def test_wrong_settings() -> None:
    for settings, message in (
        ({"max_answer": 0}, "--max-answer is 0: it must be 1 or more"),
        ({"doc_stride": -1}, "--doc-stride is -1: it must be 0 or more"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            SpanPrediction(**settings)
    with pytest.raises(UsageError, match="--tolerance is for regression"):
        SpanPrediction().within(1.0, ())
    with pytest.raises(UsageError, match="a question and a context, not 1 texts"):
        SpanPrediction().check_texts(1)
    with pytest.raises(UsageError, match="one sentence, not 2 texts"):
        SequenceTagging().check_texts(2)
