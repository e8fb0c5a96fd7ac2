"""PWWS (Ren et al. 2019, https://aclanthology.org/P19-1103/): words replaced by synonyms."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from alum_fairseq.robustness.attacks.greedy import WEIGHTED
from alum_fairseq.robustness.attacks.wordnet import wordnet_synonyms
from alum_fairseq.robustness.attacks.words import Candidates, of_words
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.part import Part, register_part
from alum_fairseq.robustness.parts.substitution import Substitution


@register_part("pwws")
@dataclass
class PWWS(Substitution):
    """Synonyms of WordNet, where NLTK and its WordNet are installed."""

    wordnet: str | None = None
    label = "PWWS"
    optional = True
    importance = WEIGHTED

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        group.add_argument(
            "--wordnet",
            type=Path,
            metavar="DIR",
            help="dictionary files of WordNet, such as /usr/share/wordnet (default: NLTK's own)",
        )

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        folder = None if options.wordnet is None else str(options.wordnet)
        return [replace(part, wordnet=folder) for part in super().from_options(options, data)]

    @override
    def words(self) -> Candidates:
        return of_words(wordnet_synonyms(self.wordnet and Path(self.wordnet)))
