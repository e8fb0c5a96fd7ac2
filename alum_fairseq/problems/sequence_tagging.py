"""Sequence tagging: which tag has each word? Named entities, parts of speech."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self, override

from alum_fairseq.errors import UsageError
from alum_fairseq.problems.problem import Verdict, register_problem
from alum_fairseq.problems.token_problem import (
    IGNORED,
    Outputs,
    Piece,
    PieceOf,
    Right,
    Share,
    TokenProblem,
)

_WORD = re.compile("[^ ]+")
_ENTITY = re.compile("([BIES])-(.+)", re.DOTALL)
OUTSIDE = "O"
_PREFIXES = "OBIES"


@dataclass(frozen=True)
class Tags:
    """What a model says of a sentence: each word with its tag and the tag's probability."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    scores: tuple[float, ...]


@register_problem
@dataclass(frozen=True)
class SequenceTagging(TokenProblem):
    """One logit for each tag, at the first subword of a word; other subwords count for nothing.

    An example is a sentence, with a blank between words; its answer is the tags, likewise. A word
    that the vocabulary makes no token of is outside of every entity.
    """

    name = "sequence_tagging"
    metrics = ("accuracy", "f1", "precision", "recall")
    form = "conll"
    columns = ("tokens",)
    label_column = "tags"
    share_right = "Sentences right"
    word_by_word = True

    @property
    @override
    def answers(self) -> str:
        return f"tags ({self._listed})"

    @property
    def _listed(self) -> str:
        return ", ".join(self.labels[:10]) + (", ..." if len(self.labels) > 10 else "")

    @property
    @override
    def metric(self) -> str:
        return "f1" if self.has_entities else "accuracy"

    @property
    @override
    def outputs(self) -> int:
        return len(self.labels)

    @property
    def has_entities(self) -> bool:
        """Whether the tags mark entities (BIO, IOB1 or BIOES)."""
        return has_entities(self.labels)

    @property
    @override
    def shares(self) -> tuple[Share, ...]:
        words = "The share of the words with the right tag."
        found = (Share("words", "Words right", words, {"words_right": 1}, {"words": 1}),)
        if not self.has_entities:
            return found
        entities = "Harmonic mean of precision and recall of entities, as seqeval counts them."
        below = {"said": 1, "true": 1}
        return (Share("f1", "F1 of entities", entities, {"both": 2}, below), *found)

    @override
    def train_options(self) -> list[str]:
        return ["--num-classes", str(len(self.labels))]

    @override
    def check_texts(self, count: int) -> None:
        if count != 1:
            raise UsageError(f"an example is one sentence, not {count} texts")

    @override
    def answer(self, text: str) -> int:
        """How many tags there are."""
        tags = text.split(" ")
        for tag in tags:
            if tag not in self.labels:
                raise UsageError(f"the tag {tag!r} is none of the data's ({self._listed})")
        return len(tags)

    @override
    def classes_in(self, label: str) -> list[str]:
        """The tags."""
        return label.split(" ")

    @override
    def settled(self, labels: Sequence[str]) -> Self:
        """In the order of the alphabet, but with ``O`` first."""
        found = {tag for label in labels for tag in label.split(" ")}
        ordered = sorted(found, key=lambda tag: (tag != OUTSIDE, tag))
        if len(ordered) < 2:
            raise UsageError(f"every word has the tag {ordered[0]}: there is nothing to learn")
        return self if self.labels else replace(self, labels=tuple(ordered))

    # ------------------------------------------------------------------- inputs and targets

    @override
    def cuts(self, ranges: Tensor, text: str, room: int) -> list[tuple[int, int]]:
        """At the last border between words that there is room to; a longer word loses its end."""
        borders = [place for place, _ in _first_tokens(ranges, text)] + [len(ranges)]
        cuts, begin = [], 0
        for border, following in zip(borders, [*borders[1:], None], strict=True):
            if following is None or (following - begin > room and border > begin):
                cuts.append((begin, min(border, begin + room)))
                begin = border
        return cuts

    @override
    def target(self, of: PieceOf) -> Tensor:
        """The number of the tag for the first token of each word, :data:`IGNORED` elsewhere."""
        target = torch.full((len(of.piece),), IGNORED)
        tags = of.label.split(" ")
        for place, word in _first_tokens(of.piece.ranges, of.texts[-1]):
            target[of.piece.first + place] = self.labels.index(tags[word])
        return target

    @override
    def weights(self, target: Tensor, logits: Tensor, padding_idx: int) -> Tensor:
        return target.ne(IGNORED).to(logits.dtype)

    @override
    def token_loss(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """The cross entropy."""
        flat = logits.float().flatten(0, 1)
        loss = functional.cross_entropy(
            flat, target.flatten(), reduction="sum", ignore_index=IGNORED
        )
        return loss, target.ne(IGNORED).sum()

    # --------------------------------------------------------------- metrics of validation

    @override
    def records(self, logits: Tensor, rows: Sequence[PieceOf]) -> Tensor:
        """For each word: example, place, and the prefixes and types of its tags.

        First those that the model says, then the right ones; see :meth:`_codes`.
        """
        codes, found = self._codes(), []
        best = logits.argmax(-1).cpu()
        for row, of_row in zip(rows, best, strict=True):
            tags = row.label.split(" ")
            for place, word in _first_tokens(row.piece.ranges, row.texts[-1]):
                said = codes[of_row[row.piece.first + place]]
                right = codes[self.labels.index(tags[word])]
                found.append((row.number, word, *said, *right))
        return torch.tensor(found, dtype=torch.long).view(-1, 6)

    def _codes(self) -> list[tuple[int, int]]:
        """Of each tag the prefix (0 to 4, ``OBIES``) and the type; without entities -1 and it."""
        if not self.has_entities:
            return [(-1, number) for number in range(len(self.labels))]
        parts = [_parts(label) for label in self.labels]
        types = sorted({kind for _, kind in parts})
        return [(_PREFIXES.index(prefix), types.index(kind)) for prefix, kind in parts]

    @staticmethod
    @override
    def summary(records: Tensor) -> dict[str, float]:
        """Accuracy, and if the tags mark entities their F1, precision and recall."""
        if not len(records):
            return {}
        sentences: dict[int, list[list[int]]] = {}
        for number, *rest in sorted(records.tolist()):
            sentences.setdefault(number, []).append(rest)
        right = records[:, 2:4].eq(records[:, 4:]).all(1).double().mean()
        found = {"accuracy": 100 * float(right)}
        if records[0, 2] < 0:
            return found
        tags = [
            [[(_PREFIXES[word[at]], str(word[at + 1])) for word in words] for at in (1, 3)]
            for words in sentences.values()
        ]
        return found | entity_scores(tags)

    # ------------------------------------------------------------------ right and wrong

    @override
    def predictions(self, logits: Tensor, right: Sequence[Right]) -> Tensor:
        """The tags of every token, ``B x PT x C``; zeros for those that count for nothing."""
        counts = torch.stack([_padded(of.right, logits.shape[2]).ne(IGNORED) for of in right])
        return logits.masked_fill(~counts.unsqueeze(-1).to(logits.device), 0.0).flatten(1, 2)

    @override
    def right_of(self, pieces: Sequence[Piece], texts: tuple[str, ...], label: str) -> Right:
        """The number of the right tag for each token of each piece, ``P x T``."""
        return Right(
            pieces, self.batch_of([self.target(PieceOf(p, 0, texts, label)) for p in pieces])
        )

    def _scored(self, logits: Tensor, targets: Sequence[Right]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each example the logits of its words, ``W x C``, and which tags are right."""
        for row, of in zip(logits, targets, strict=True):
            target = _padded(of.right, len(row) // len(of.right)).flatten().to(row.device)
            counts = target.ne(IGNORED)
            yield row[counts], functional.one_hot(target[counts], row.shape[-1]).bool()

    @override
    def loss(self, logits: Tensor, targets: Sequence[Right]) -> Tensor:
        """The cross entropy, mean over the words."""
        return torch.stack(
            [
                -words.log_softmax(-1)[right].sum() / max(len(words), 1)
                for words, right in self._scored(logits, targets)
            ]
        )

    @override
    def attack_loss(self, logits: Tensor, targets: Sequence[Right]) -> Tensor:
        """The logarithm of the odds against the right tag, of the least sure word."""
        return torch.stack(
            [
                torch.cat(
                    [
                        words.masked_fill(right, -math.inf).logsumexp(-1) - words[right],
                        words.new_zeros(1),
                    ]
                ).logsumexp(0)
                for words, right in self._scored(logits, targets)
            ]
        )

    @override
    def margins(self, logits: Tensor, targets: Sequence[Right]) -> Tensor:
        """How far each word is from a wrong tag: ``B x W``, infinite where there is no word."""
        margins = [
            words[right] - words.masked_fill(right, -math.inf).amax(-1)
            for words, right in self._scored(logits, targets)
        ]
        infinite = [logits.new_full((1,), math.inf)] * len(margins)
        rows = [torch.cat(pair) for pair in zip(margins, infinite, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=math.inf)

    @override
    def verdict(self, logits: Outputs, target: str) -> Verdict:
        """Right if every tag is; the details are what F1 and accuracy are made of."""
        found, tags = self.prediction(logits), target.split(" ")
        right = self.right_of(logits.pieces, logits.texts, target)
        loss = float(self.loss(self.of_outputs(logits, right), [right]))
        same = sum(map(operator.eq, found.tags, tags))
        details = {"words": len(tags), "words_right": same}
        if self.has_entities:
            details |= _counts([*map(_parts, found.tags)], [*map(_parts, tags)])
        confidence = min(found.scores, default=0.0)
        return Verdict(" ".join(found.tags), same == len(tags), loss, confidence, details)

    @override
    def fixed(self, texts: Sequence[str], label: str) -> list[tuple[int, int, int]]:
        """The words of entities."""
        words = zip(_WORD.finditer(texts[-1]), label.split(" "), strict=False)
        return [(0, *word.span()) for word, tag in words if self.has_entities and tag != OUTSIDE]

    # ---------------------------------------------------------------- what a model answers

    @override
    def prediction(self, logits: Outputs) -> Tags:
        words = _WORD.findall(logits.texts[-1])
        tags = [(OUTSIDE if OUTSIDE in self.labels else self.labels[0], 0.0)] * len(words)
        for place, of_word in self.of_words(logits).items():
            score, best = of_word.softmax(-1).max(-1)
            tags[place] = self.labels[best], float(score)
        return Tags(tuple(words), *zip(*tags, strict=True)) if words else Tags((), (), ())

    @staticmethod
    def of_words(outputs: Outputs) -> dict[int, Tensor]:
        """The logits of every word that has a token, by its place."""
        return {
            word: logits[piece.first + place]
            for piece, logits in zip(outputs.pieces, outputs.logits, strict=True)
            for place, word in _first_tokens(piece.ranges, outputs.texts[-1])
        }

    @override
    def entries(self, prediction: Tags) -> dict[str, Any]:
        entries = {"tokens": prediction.words, "tags": prediction.tags}
        return {**entries, "scores": [round(score, 6) for score in prediction.scores]}

    @override
    def row(self, prediction: Tags) -> dict[str, str]:
        return {"tokens": " ".join(prediction.words), "tags": " ".join(prediction.tags)}

    @override
    def scores(self, predictions: Sequence[Tags], answers: Sequence[str]) -> dict[str, float]:
        """``accuracy`` and, of entities, ``f1``, ``precision``, ``recall``, in percent."""
        pairs = [[list(p.tags), a.split(" ")] for p, a in zip(predictions, answers, strict=True)]
        right = [s == r for said, tags in pairs for s, r in zip(said, tags, strict=True)]
        found = {"accuracy": 100 * sum(right) / len(right)}
        if not self.has_entities:
            return found
        return found | entity_scores([[[*map(_parts, tags)] for tags in pair] for pair in pairs])


def has_entities(labels: Sequence[str]) -> bool:
    """Whether tags mark entities: each is ``O``, or ``B``, ``I``, ``E`` or ``S`` and a type."""
    return all(tag == OUTSIDE or _ENTITY.fullmatch(tag) for tag in labels)


def _parts(tag: str) -> tuple[str, str]:
    """The prefix and the type; ``O`` has an empty one."""
    found = _ENTITY.fullmatch(tag)
    return (found[1], found[2]) if found else (OUTSIDE, "")


def _first_tokens(ranges: Tensor, text: str) -> Iterator[tuple[int, int]]:
    """The first token of each word, as its place in ``ranges`` and the word's place in the text."""
    if not len(ranges):
        return
    starts = torch.tensor([word.start() for word in _WORD.finditer(text)])
    begins, ends = ranges.unbind(1)
    words = torch.searchsorted(starts, begins.contiguous(), right=True) - 1
    before = -1
    for place, (word, blank) in enumerate(
        zip(words.tolist(), (begins == ends).tolist(), strict=True)
    ):
        if not blank and word != before:
            yield place, word
            before = word


Tag = tuple[str, str]


def entities(tags: Sequence[Tag]) -> set[tuple[str, int, int]]:
    """The type, the first and the last word of each entity, by the rules of CoNLL's script.

    Those of conlleval (Tjong Kim Sang and De Meulder 2003), which read BIO, IOB1 and BIOES alike,
    and tags that break the rules as well; seqeval's default.
    """
    found, begin = set(), 0
    before = (OUTSIDE, "")
    for place, tag in enumerate([*tags, (OUTSIDE, "")]):
        (prefix, kind), (last, kind_before) = tag, before
        other = kind != kind_before
        if last != OUTSIDE and (last in "ES" or prefix in "BSO" or other):
            found.add((kind_before, begin, place - 1))
        if prefix != OUTSIDE and (prefix in "BS" or last in "ESO" or other):
            begin = place
        before = tag
    return found


def entity_scores(sentences: Sequence[Sequence[Sequence[Tag]]]) -> dict[str, float]:
    """F1, precision and recall of entities in percent; each sentence has what is said and right."""
    counts = [_counts(*sentence) for sentence in sentences]
    said, right, both = (sum(each[name] for each in counts) for name in ("said", "true", "both"))
    return {
        "f1": 200 * both / max(said + right, 1),
        "precision": 100 * both / max(said, 1),
        "recall": 100 * both / max(right, 1),
    }


def _counts(said: Sequence[Tag], right: Sequence[Tag]) -> dict[str, int]:
    """How many entities the model says, how many there are, and how many of either are the same."""
    of_model, of_data = entities(said), entities(right)
    return {"said": len(of_model), "true": len(of_data), "both": len(of_model & of_data)}


def _padded(target: Tensor, length: int) -> Tensor:
    return functional.pad(target, (0, length - target.shape[1]), value=IGNORED)
