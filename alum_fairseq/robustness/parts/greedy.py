"""Words replaced, the most important ones first, until the model errs."""

from __future__ import annotations

from abc import abstractmethod
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self, override

from alum_fairseq.errors import UsageError, is_number
from alum_fairseq.predict.options import on_gpu
from alum_fairseq.robustness.attacks.greedy import (
    LEFT_OUT,
    MASKED,
    WEIGHTED,
    Admits,
    Attempt,
    Limits,
    character_edits,
    greedy_attack,
    run_side_by_side,
)
from alum_fairseq.robustness.attacks.language_model import load_language_model
from alum_fairseq.robustness.attacks.words import (
    MIN_LETTERS,
    Candidates,
    of_words,
    single_words,
)
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.options import add_effort, check_share
from alum_fairseq.robustness.parts.part import Part, register_part
from alum_fairseq.robustness.parts.word_attack import (
    USUAL_WORDS,
    WordAttack,
    attempted,
    editable_texts,
)
from alum_fairseq.robustness.store import digest
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record, Texts, Verdict

# Most attacks under way at a time; their questions make up the batches.
_AT_MOST = 64
# Of the temperature that calibrates. Where it is low, the nearest wrong answer counts; where it is
# high, all of them count alike.
_TEMPERATURES = (1, 0.1, 10)


@dataclass(frozen=True)
class Source:
    """A file that an option names, by its path and its SHA-256."""

    option: str
    path: str = field(compare=False)
    sha256: str

    @classmethod
    def of(cls, option: str, path: Path | None) -> Self | None:
        """None if the option is not given; a UsageError if there is no such file."""
        if path is None:
            return None
        if not path.is_file():
            raise UsageError(f"{option} {path}: there is no such file")
        return cls(option, str(path), digest(path))


@dataclass(frozen=True)
class Similarity:
    """How alike two texts must be, by which sentence encoder."""

    encoder: Source
    least: float

    @classmethod
    def from_options(cls, options: Namespace) -> Self | None:
        """What the options say; None: nothing."""
        if options.similarity_encoder is None:
            return None
        least = options.min_similarity
        if not (is_number(least) and -1 <= least <= 1):
            raise UsageError(f"--min-similarity is {least:g}: a cosine is from -1 to 1")
        return cls(Source.of("--similarity-encoder", options.similarity_encoder), least)

    def of(self, device: str, original: Texts, others: Sequence[Texts]) -> list[float]:
        """The cosines of the vectors of texts, an example's taken as one, with the original's."""
        if not others:
            return []
        encoder = load_language_model(Path(self.encoder.path), self.encoder.option, device)
        vectors = encoder.vectors([" ".join(texts) for texts in (original, *others)])
        return (vectors[1:] @ vectors[0]).tolist()


@dataclass
class GreedyAttack(WordAttack):
    """The greedy search; subclasses say what may stand in the place of a word.

    Attributes:
        min_letters: words with fewer letters stay.
    """

    limits: Limits
    similarity: Similarity | None = None
    device: str = field(default="cpu", compare=False)
    importance: ClassVar[str] = LEFT_OUT
    min_letters: ClassVar[int] = MIN_LETTERS

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        text = "how many substitutes of a word an attack may try"
        add_effort(group, "--max-candidates", 8, 8, text, least=1)
        group.add_argument(
            "--similarity-encoder",
            type=Path,
            metavar="FILE",
            help="fairseq's RoBERTa whose mean features say how alike two texts are, such as a "
            "converted sentence encoder; its vocabulary lies beside it (default: no such limit)",
        )
        text = "with --similarity-encoder: the least cosine of the changed text and the original"
        add_effort(group, "--min-similarity", 0.84, 0.84, text, type=float, metavar="COSINE")

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        check_share("--max-edits is", options.max_edits)
        limits = Limits(
            options.max_edits, options.max_queries, cls.min_letters, options.max_candidates
        )
        given = (editable_texts(options, data), limits, Similarity.from_options(options))
        device = "cuda" if on_gpu(options) else "cpu"
        return [cls(options.seed, *given, device=device, **cls.own_fields(options))]

    @classmethod
    def own_fields(cls, options: Namespace) -> dict[str, Any]:
        """What the options say of the fields that a subclass adds."""
        return {}

    @abstractmethod
    def candidates(self) -> Candidates:
        """What may stand in the place of a word; a UsageError if what it needs is not there."""

    @property
    @override
    def cost(self) -> float:
        return 0.35 * self.limits.queries(USUAL_WORDS)

    @override
    def check(self) -> None:
        self.candidates()

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        candidates, importance, problem = self.candidates(), self.importance, subject.problem
        if problem.word_by_word:
            candidates = single_words(candidates)
            importance = MASKED if importance == LEFT_OUT else importance

        def attempts(examples: Sequence[Example], temperature: float) -> list[Attempt]:
            def ask(asked: list[tuple[int, Texts]]) -> list[Verdict]:
                wanted = [(examples[number], texts) for number, texts in asked]
                return subject.verdicts(wanted, temperature)

            attacks = (
                greedy_attack(
                    each.texts,
                    candidates,
                    self.limits,
                    self.editable,
                    importance,
                    self._admits(each.texts),
                    problem.fixed(each.texts, each.answer),
                )
                for each in examples
            )
            return run_side_by_side(attacks, ask, _AT_MOST)

        found = attempts(examples, 1.0)
        for temperature in self._temperatures(subject):
            left = [number for number, one in enumerate(found) if one.verdict.correct]
            again = attempts([examples[number] for number in left], temperature)
            for number, one in zip(left, again, strict=True):
                if not one.verdict.correct:
                    found[number] = one
        return list(map(self._record, examples, found))

    def _temperatures(self, subject: Subject) -> list[float]:
        """At which what survives is attacked again: a scale may hide where a model gives way.

        Raina et al. (2024), arXiv 2402.17509. None where all temperatures rank texts alike.
        """
        problem = subject.problem
        alike = len(problem.labels) == 2 and self.importance != WEIGHTED
        if alike or not problem.categorical:
            return []
        return [times * subject.temperature for times in _TEMPERATURES]

    def _admits(self, original: Texts) -> Admits | None:
        if self.similarity is None:
            return None
        of, least = partial(self.similarity.of, self.device, original), self.similarity.least
        return lambda texts: [cosine >= least for cosine in of(texts)]

    def _record(self, example: Example, attempt: Attempt) -> Record:
        if self.similarity is None:
            return attempted(attempt)
        (cosine,) = self.similarity.of(self.device, example.texts, [attempt.texts])
        return {**attempted(attempt), "similarity": cosine}


@register_part("greedy")
class Misspellings(GreedyAttack):
    """Typing mistakes."""

    label = "misspellings"

    @override
    def candidates(self) -> Candidates:
        return of_words(character_edits(self.seed, self.limits.max_candidates))
