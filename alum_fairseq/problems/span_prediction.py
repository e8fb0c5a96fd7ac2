"""Span prediction (extractive question answering): where in a text is the answer?

The rules are those of BERT on SQuAD (Devlin et al. 2019, arXiv 1810.04805, sections 4.2 and 4.3).
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self, override

from alum_fairseq.errors import UsageError
from alum_fairseq.problems.problem import Verdict, register_problem
from alum_fairseq.problems.token_problem import (
    Outputs,
    Piece,
    PieceOf,
    Right,
    Share,
    TokenProblem,
)

EOS = 2  # fairseq's, in every dictionary
NEVER = -1e4  # the logit of a place out of play: finite in half precision, and with no probability


@dataclass(frozen=True)
class Span:
    """An answer.

    Attributes:
        text: the characters from ``start`` to ``end`` of the context; empty: there is no answer.
        start: the first character; -1 where there is no answer.
        end: the one after the last; likewise.
        score: its probability among the answers that were kept.
    """

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class SpanAnswer:
    """What a model says of a question.

    Attributes:
        best: of the spans; the first is the answer.
        null_score: how much the logit of no answer is above that of the best span; minus infinity
            where every question has an answer.
    """

    best: tuple[Span, ...]
    null_score: float


@register_problem
@dataclass(frozen=True)
class SpanPrediction(TokenProblem):
    """Two logits for each token: that the answer begins there, and that it ends there.

    An example is a question and a context. ``<s>`` stands for no answer in this piece.

    Attributes:
        max_question: the most tokens of a question, whose end is cut off.
        doc_stride: how many tokens two neighbouring pieces of a context share.
        max_answer: the most tokens of an answer.
        unanswerable: whether questions may have no answer (SQuAD 2.0).
        null_threshold: a question has no answer where its ``null_score`` is above this.
        n_best: how many spans a prediction has.
    """

    name = "span_prediction"
    has_classes = False
    metrics = ("em", "f1")
    form = "squad"
    columns = ("question", "context")
    label_column = "answers"
    settings_of_data = ("max_question", "doc_stride", "max_answer", "unanswerable")
    share_right = "Exact match"
    edited = (0,)
    max_question: int = 64
    doc_stride: int = 128
    max_answer: int = 30
    unanswerable: bool = False
    null_threshold: float = 0.0
    n_best: int = 5

    def __post_init__(self) -> None:
        for name in ("max_question", "max_answer", "n_best"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is {getattr(self, name)}: it must be 1 or more")
        if self.doc_stride < 0:
            raise UsageError(f"--doc-stride is {self.doc_stride}: it must be 0 or more")

    @property
    @override
    def answers(self) -> str:
        return "spans of a text"

    @property
    @override
    def outputs(self) -> int:
        return 2

    @property
    @override
    def most_before(self) -> int:
        return self.max_question

    @property
    @override
    def shares(self) -> tuple[Share, ...]:
        meaning = "Of the words of the answer and of the right one, as SQuAD's script counts it."
        return (Share("f1", "F1", meaning, {"f1": 1}),)

    @override
    def train_options(self) -> list[str]:
        return []

    @override
    def check_texts(self, count: int) -> None:
        if count != 2:
            raise UsageError(f"an example has a question and a context, not {count} texts")

    @override
    def answer(self, text: str) -> int:
        """How many answers there are."""
        return len(gold_answers(text))

    @override
    def settled(self, labels: Sequence[str]) -> Self:
        return replace(self, unanswerable=any(not gold_answers(label) for label in labels))

    # ------------------------------------------------------------------- inputs and targets

    @override
    def cuts(self, ranges: Tensor, text: str, room: int) -> list[tuple[int, int]]:
        step = room - self.doc_stride
        if len(ranges) > room and step < 1:
            raise UsageError(
                f"--doc-stride is {self.doc_stride}: an input has room for {room} tokens of the "
                "context, and its neighbour must share fewer"
            )
        ends = [room]
        while ends[-1] < len(ranges):
            ends.append(ends[-1] + step)
        return [(end - room, min(end, len(ranges))) for end in ends]

    @override
    def target(self, of: PieceOf) -> Tensor:
        """The places of the first and the last token of the first answer; 0 if it is not here."""
        places = (0, 0)
        if answers := gold_answers(of.label):
            text, start = answers[0]
            places = _tokens_of(of.piece, start, start + len(text)) or places
        return torch.tensor(places)

    @override
    def logits_of(self, outputs: Sequence[Tensor], sample: Any) -> Tensor:
        """``B x 2 x T``: those of the context and of ``<s>``; all others are out of play."""
        logits = self.logits(outputs).transpose(1, 2)
        ends = sample["net_input"]["src_tokens"].eq(EOS)
        texts = ends.cumsum(1)  # that ended so far, this token included
        in_play = texts.eq(texts[:, -1:] - 1) & ~ends
        in_play[:, 0] = True
        return logits.masked_fill(~in_play.unsqueeze(1), NEVER)

    @override
    def weights(self, target: Tensor, logits: Tensor, padding_idx: int) -> Tensor:
        """A half for the beginning and for the end, as in the loss."""
        return logits.new_full(logits.shape[:2], 0.5)

    @override
    def token_loss(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """The cross entropy, mean over beginning and end."""
        flat = logits.float().flatten(0, 1)
        loss = functional.cross_entropy(flat, target.flatten(), reduction="sum")
        return loss / 2, len(target)

    # --------------------------------------------------------------- metrics of validation

    @override
    def records(self, logits: Tensor, rows: Sequence[PieceOf]) -> Tensor:
        """For each piece: example, score of its best span, that of none, EM and F1 of either."""
        found = []
        for row, of_row in zip(rows, logits.float().cpu(), strict=True):
            null, spans = self._spans(row.piece, of_row[: len(row.piece)], 1)
            score, start, end = spans[0] if spans else (-math.inf, 0, 0)
            numbers = _em_f1(row.texts[-1][start:end], row.label) + _em_f1("", row.label)
            found.append((row.number, score, null, *numbers))
        return torch.tensor(found, dtype=torch.float64)

    @staticmethod
    @override
    def summary(records: Tensor) -> dict[str, float]:
        """Exact match and F1, with the threshold for no answer at which F1 is best.

        A question that has several pieces is answered by the best span of all.
        """
        numbers, of = records[:, 0].unique(return_inverse=True)
        best = torch.full((len(numbers),), -math.inf, dtype=records.dtype)
        best = best.scatter_reduce(0, of, records[:, 1], "amax")
        null = torch.full_like(best, math.inf).scatter_reduce(0, of, records[:, 2], "amin")
        chosen = torch.zeros(len(numbers), dtype=torch.long)
        first = (records[:, 1] == best[of]).nonzero().flatten().flip(0)
        chosen[of[first]] = first
        em, f1, null_em, null_f1 = records[chosen, 3:].T
        above = (null - best).nan_to_num(-math.inf, math.inf, -math.inf)
        order = above.argsort()  # the surest of an answer first
        # After k questions that are answered, all others have none.
        answered = functional.pad(f1[order].cumsum(0), (1, 0))
        others = functional.pad(null_f1[order].flip(0).cumsum(0).flip(0), (0, 1))
        possible = torch.ones(len(order) + 1, dtype=torch.bool)
        sure = above[order]
        possible[1:-1] = sure[1:] > sure[:-1]  # equal ones stand on one side
        possible[: int(sure.eq(-math.inf).sum())] = False
        count = int((answered + others).where(possible, torch.tensor(-1.0)).argmax())
        exact = em[order][:count].sum() + null_em[order][count:].sum()
        share = 100 / len(numbers)
        found = {"em": share * float(exact), "f1": share * float((answered + others)[count])}
        if not sure.eq(-math.inf).all():
            found["null_threshold"] = _between(sure, count)
        return found

    def _spans(
        self, piece: Piece, logits: Tensor, most: int
    ) -> tuple[float, list[tuple[float, int, int]]]:
        """The score of no answer, and those of the best spans with their characters.

        Args:
            piece: an input.
            logits: its, ``T x 2``.
            most: how many spans.
        """
        null = float(logits[0].sum()) if self.unanswerable else -math.inf
        count = len(piece.body)
        if not count:
            return null, []
        scores = self._span_scores(logits[piece.first : piece.first + count])
        # Blanks alone are no answer, and two spans may have the same characters.
        scores.masked_fill_((piece.ranges[:, 0] == piece.ranges[:, 1]).unsqueeze(1), -math.inf)
        values, places = scores.flatten().topk(min(most, scores.numel()))
        starts, lengths = places // scores.shape[1], places % scores.shape[1]
        begins = piece.ranges[starts, 0].tolist()
        ends = piece.ranges[(starts + lengths).clamp(max=count - 1), 1].tolist()
        found = zip(values.tolist(), begins, ends, strict=True)
        return null, [each for each in found if each[0] > -math.inf and each[2] > each[1]]

    def _span_scores(self, logits: Tensor) -> Tensor:
        """Of every span of the body's tokens: ``n x L``, by first token and length less 1."""
        start, end = logits.unbind(-1)
        longest = min(self.max_answer, len(start))
        ends = functional.pad(end, (0, longest - 1), value=-math.inf)
        return start.unsqueeze(1) + ends.unfold(0, longest, 1)

    # ---------------------------------------------------------------- what a model answers

    @override
    def prediction(self, logits: Outputs) -> SpanAnswer:
        """The best spans over the pieces of a question; HF's ``run_qa`` and BERT's rules."""
        context = logits.texts[-1]
        nulls, spans = [], {}
        for piece, of_piece in zip(logits.pieces, logits.logits, strict=True):
            null, found = self._spans(piece, of_piece, self.n_best)
            nulls.append(null)
            for score, start, end in found:
                spans[start, end] = max(score, spans.get((start, end), -math.inf))
        none, best = (-1, -1), max(spans, key=spans.__getitem__, default=None)
        null_score = math.inf if best is None else min(nulls) - spans[best]
        if best is None or self.unanswerable:
            spans[none] = min(nulls) if self.unanswerable else 0.0
        answer = none if null_score > self.null_threshold else best
        others = sorted(spans.keys() - {answer}, key=lambda span: (-spans[span], span))
        ranked = [answer, *others][: self.n_best]
        scores = torch.tensor([spans[span] for span in ranked], dtype=torch.float64).softmax(0)
        return SpanAnswer(
            tuple(
                Span("" if span == none else context[slice(*span)], *span, score)
                for span, score in zip(ranked, scores.tolist(), strict=True)
            ),
            null_score,
        )

    # ------------------------------------------------------------------ right and wrong

    @override
    def predictions(self, logits: Tensor, right: Sequence[Right]) -> Tensor:
        """Where the answer begins and where it ends, for each piece: ``B x 2P x T``."""
        out = torch.ones(logits.shape[:-1], dtype=torch.bool)
        out[:, :, 0] = not self.unanswerable
        for row, of_example in zip(out, right, strict=True):
            for places, piece in zip(row, of_example.pieces, strict=True):
                places[piece.first : piece.first + len(piece.body)] = False
        out = out.unsqueeze(-1).to(logits.device)
        return logits.masked_fill(out, NEVER).transpose(2, 3).flatten(1, 2)

    def _candidates(self, predictions: Tensor, pieces: Sequence[Piece]) -> Tensor:
        """The scores of no answer and of every span of every piece, one after the other."""
        rows = predictions.view(len(pieces), 2, -1).transpose(1, 2)
        null = rows[:, 0].sum(-1).min() - self.null_threshold if self.unanswerable else NEVER
        found = [rows.new_zeros(1) + null]
        for row, piece in zip(rows, pieces, strict=True):
            if len(piece.body):
                scores = self._span_scores(row[piece.first : piece.first + len(piece.body)])
                found.append(scores.flatten())
        return torch.cat(found)

    @override
    def right_of(self, pieces: Sequence[Piece], texts: tuple[str, ...], label: str) -> Right:
        """Which candidates are an exact match."""
        none = torch.tensor([self.unanswerable and not gold_answers(label)])
        ranges = [tuple(map(tuple, piece.ranges.tolist())) for piece in pieces]
        found = [_exact(texts[-1], label, each, self.max_answer) for each in ranges]
        return Right(pieces, torch.cat([none, *found]))

    def _scored(self, logits: Tensor, targets: Sequence[Right]) -> Iterator[tuple[Tensor, Tensor]]:
        """The scores of the right and of the other candidates, for each example."""
        for row, right in zip(logits, targets, strict=True):
            scores = self._candidates(row, right.pieces)
            here = right.right.to(scores.device)
            yield scores[here], scores[~here]

    @override
    def loss(self, logits: Tensor, targets: Sequence[Right]) -> Tensor:
        """Minus the logarithm of the probability that the span is a right one."""
        return torch.stack(
            [
                torch.cat([right, wrong]).logsumexp(0) - right.logsumexp(0)
                for right, wrong in self._scored(logits, targets)
            ]
        )

    @override
    def attack_loss(self, logits: Tensor, targets: Sequence[Right]) -> Tensor:
        """The logarithm of the odds against the right answer."""
        return torch.stack(
            [
                wrong.logsumexp(0) - right.logsumexp(0)
                for right, wrong in self._scored(logits, targets)
            ]
        )

    @override
    def margins(self, logits: Tensor, targets: Sequence[Right]) -> Tensor:
        """The score of the best right span, less that of the best other (``B x 1``)."""
        none = logits.new_full((1,), -math.inf)
        return torch.stack(
            [
                torch.cat([right, none]).amax(0, keepdim=True)
                - torch.cat([wrong, none]).amax(0, keepdim=True)
                for right, wrong in self._scored(logits, targets)
            ]
        )

    @override
    def verdict(self, logits: Outputs, target: str) -> Verdict:
        found = self.prediction(logits).best[0]
        em, f1 = _em_f1(found.text, target)
        right = self.right_of(logits.pieces, logits.texts, target)
        loss = float(self.loss(self.of_outputs(logits, right), [right]).clamp(max=-NEVER))
        return Verdict(found.text, em == 1, loss, found.score, {"f1": f1})

    @override
    def fixed(self, texts: Sequence[str], label: str) -> list[tuple[int, int, int]]:
        """The right answers."""
        return [(1, start, start + len(text)) for text, start in gold_answers(label)]

    @override
    def shown(self, label: str) -> str:
        return " / ".join(dict.fromkeys(text for text, _ in gold_answers(label))) or "no answer"

    @override
    def entries(self, prediction: SpanAnswer) -> dict[str, Any]:
        best = prediction.best[0]
        entries = {"answer": best.text, "start": best.start, "end": best.end, "score": best.score}
        if self.unanswerable:
            entries["null_score"] = prediction.null_score
        if self.n_best > 1:
            entries["n_best"] = [vars(span) for span in prediction.best]
        return entries

    @override
    def row(self, prediction: SpanAnswer) -> dict[str, str]:
        best = prediction.best[0]
        row = {"answer": " ".join(best.text.split()), "start": str(best.start)}
        return row | {"end": str(best.end), "score": f"{best.score:.6f}"}

    @override
    def scores(self, predictions: Sequence[SpanAnswer], answers: Sequence[str]) -> dict[str, float]:
        """``em`` and ``f1`` in percent, as SQuAD's script has them.

        Where questions may have no answer, also the threshold at which F1 would be best.
        """
        pairs = zip(predictions, answers, strict=True)
        records = [_em_f1(found.best[0].text, answer) for found, answer in pairs]
        em, f1 = torch.tensor(records, dtype=torch.float64).mean(0).tolist()
        return {"em": 100 * em, "f1": 100 * f1} | self._best_threshold(predictions, answers)

    def _best_threshold(
        self, predictions: Sequence[SpanAnswer], answers: Sequence[str]
    ) -> dict[str, float]:
        if not self.unanswerable:
            return {}
        records = []
        for number, (found, answer) in enumerate(zip(predictions, answers, strict=True)):
            text = next((span.text for span in found.best if span.text), "")
            scores = (0.0, found.null_score)
            records.append((number, *scores, *_em_f1(text, answer), *_em_f1("", answer)))
        best = self.summary(torch.tensor(records, dtype=torch.float64))
        return {f"best_{name}": value for name, value in best.items()}


def gold_answers(label: str) -> list[tuple[str, int]]:
    """The right answers that a label lists, each with its first character.

    Args:
        label: ``{"text": [...], "answer_start": [...]}`` as JSON, Hugging Face's form.

    Raises:
        UsageError: it is something else.
    """
    try:
        found = json.loads(label)
        texts, starts = found["text"], found["answer_start"]
        answers = list(zip(texts, starts, strict=True))
        fine = all(isinstance(text, str) and type(start) is int for text, start in answers)
    except (ValueError, TypeError, KeyError, RecursionError):
        fine = False
    if not fine:
        raise UsageError(
            f"the answers are {label:.60}: they must be an object of two lists, text and "
            "answer_start"
        )
    return answers


def label_of(answers: Sequence[tuple[str, int]]) -> str:
    """The inverse of :func:`gold_answers`."""
    texts, starts = zip(*answers, strict=True) if answers else ((), ())
    return json.dumps({"text": texts, "answer_start": starts}, ensure_ascii=False)


def normalized(text: str) -> list[str]:
    """The words that SQuAD's script compares: no articles, no punctuation, small letters."""
    text = "".join(each for each in text.lower() if each not in _PUNCTUATION)
    return _ARTICLES.sub(" ", text).split()


def em_and_f1(text: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of an answer, with the most similar of the right ones.

    As SQuAD 2.0's evaluation script (Rajpurkar et al. 2018, arXiv 1806.03822); without right
    answers, the empty one is right.
    """
    words = normalized(text)
    right = [other for answer in answers if (other := normalized(answer))] or [[]]
    return (
        max(float(words == other) for other in right),
        max(_overlap(words, other) for other in right),
    )


def _overlap(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    same = sum((Counter(words) & Counter(right)).values())
    return 2 * same / (len(words) + len(right))


def _em_f1(text: str, label: str) -> tuple[float, float]:
    return em_and_f1(text, [answer for answer, _ in gold_answers(label)])


@lru_cache(256)  # an attack asks about one context again and again
def _exact(
    context: str, label: str, ranges: tuple[tuple[int, int], ...], max_answer: int
) -> Tensor:
    """Whether each span of a piece is an exact match, in the order of ``_span_scores``."""
    right = {tuple(words) for answer, _ in gold_answers(label) if (words := normalized(answer))}
    right = right or {()}
    known: dict[str, bool] = {"": False}
    found = []
    for first, (begin, _) in enumerate(ranges):
        for last in range(first, first + min(max_answer, len(ranges))):
            text = context[begin : ranges[last][1]] if last < len(ranges) else ""
            if text not in known:
                known[text] = tuple(normalized(text)) in right
            found.append(known[text])
    return torch.tensor(found, dtype=torch.bool)


_PUNCTUATION = set(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _tokens_of(piece: Piece, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of the input for some characters; None if it lacks any."""
    begins, stops = piece.ranges.unbind(1)
    first = int((stops <= start).sum())  # they ascend
    last = int((begins < end).sum()) - 1
    inside = len(begins) and begins[0] <= start and end <= stops[-1] and first <= last
    return (piece.first + first, piece.first + last) if inside else None


def _between(ascending: Tensor, count: int) -> float:
    """A threshold that so many are not above, and all others are."""
    padded = [float(ascending[0]) - 1, *ascending.tolist(), float(ascending[-1]) + 1]
    low, high = padded[count], padded[count + 1]
    return low if count == len(ascending) or math.isinf(low + high) else (low + high) / 2
