"""What attacks that replace whole words by others have in common."""

from __future__ import annotations

from abc import abstractmethod
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.attacks.part_of_speech import keep_part_of_speech, tagger
from alum_fairseq.robustness.attacks.words import Candidates, content_words
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.greedy import GreedyAttack
from alum_fairseq.robustness.parts.part import Part

_MIN_LETTERS = 2


@dataclass
class Substitution(GreedyAttack):
    """Content words, replaced by content words of their part of speech where a tagger is there.

    Attributes:
        tagged: whether it is.
    """

    tagged: bool = False
    keeps_part_of_speech: ClassVar[bool] = True

    @abstractmethod
    def words(self) -> Candidates:
        """What may stand in the place of a word, be it of another part of speech."""

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        tagged = cls.keeps_part_of_speech and tagger() is not None
        return [
            replace(part, tagged=tagged, limits=replace(part.limits, min_letters=_MIN_LETTERS))
            for part in super().from_options(options, data)
        ]

    @override
    def candidates(self) -> Candidates:
        tag = tagger() if self.tagged else None
        return keep_part_of_speech(content_words(self.words()), tag)


def asked_for(kind: str, options: Namespace, needs: str) -> bool:
    """Whether a part may run whose option was given, if this is its name; else it may not.

    Raises:
        UsageError: it was chosen by name without its option.
    """
    if getattr(options, needs.removeprefix("--").replace("-", "_")) is not None:
        return True
    if options.parts and kind in options.parts:
        raise UsageError(f"--parts {kind} needs {needs} FILE")
    return False
