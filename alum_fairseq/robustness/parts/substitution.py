"""What attacks that replace whole words by others have in common."""

from __future__ import annotations

from abc import abstractmethod
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from alum_fairseq.robustness.attacks.part_of_speech import keep_part_of_speech, tagger
from alum_fairseq.robustness.attacks.words import Candidates, content_words
from alum_fairseq.robustness.parts.greedy import GreedyAttack


@dataclass
class Substitution(GreedyAttack):
    """Content words, replaced by content words of their part of speech where a tagger is there.

    Attributes:
        tagged: whether it is.
    """

    tagged: bool = False
    keeps_part_of_speech: ClassVar[bool] = True
    min_letters = 2

    @abstractmethod
    def words(self) -> Candidates:
        """What may stand in the place of a word, be it of another part of speech."""

    @classmethod
    @override
    def own_fields(cls, options: Namespace) -> dict[str, Any]:
        tagged = cls.keeps_part_of_speech and tagger() is not None
        return {**super().own_fields(options), "tagged": tagged}

    @property
    @override
    def note(self) -> str:
        if not self.keeps_part_of_speech:
            return ""
        if self.tagged:
            return "part of speech is kept, by NLTK's tagger"
        return "part of speech is not kept: NLTK's tagger is not installed"

    @override
    def candidates(self) -> Candidates:
        tag = tagger() if self.tagged else None
        return keep_part_of_speech(content_words(self.words()), tag)
