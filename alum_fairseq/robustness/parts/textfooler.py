"""TextFooler (Jin et al. 2020, arXiv 1907.11932): words replaced by near ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.attacks.synonyms import read_synonyms
from alum_fairseq.robustness.attacks.words import Candidates, of_words
from alum_fairseq.robustness.parts.part import register_part
from alum_fairseq.robustness.parts.substitution import Substitution
from alum_fairseq.robustness.parts.textbugger import SynonymAttack


@register_part("textfooler")
@dataclass
class TextFooler(Substitution, SynonymAttack):
    """Neighbours from a file of synonyms."""

    label = "TextFooler"

    @override
    def words(self) -> Candidates:
        if self.synonyms is None:
            raise UsageError("--synonyms FILE is not given")
        return of_words(read_synonyms(Path(self.synonyms.path)))
