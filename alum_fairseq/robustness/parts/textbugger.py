"""TextBugger (Li et al. 2019, arXiv 1812.05271): words misspelt in five ways."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from alum_fairseq.robustness.attacks.bugs import bugs
from alum_fairseq.robustness.attacks.synonyms import read_synonyms
from alum_fairseq.robustness.attacks.words import Candidates, of_words
from alum_fairseq.robustness.parts.greedy import GreedyAttack, Source
from alum_fairseq.robustness.parts.part import register_part


@dataclass
class SynonymAttack(GreedyAttack):
    """An attack that reads a file of synonyms, if there is one."""

    synonyms: Source | None = None

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        group.add_argument(
            "--synonyms",
            type=Path,
            metavar="FILE",
            help="for textfooler, and textbugger's fifth kind: a word, a tab and its neighbours, "
            "the nearest first, in each line (alum-robustness synonyms makes it of word vectors)",
        )

    @classmethod
    @override
    def own_fields(cls, options: Namespace) -> dict[str, Any]:
        synonyms = Source.of("--synonyms", options.synonyms)
        return {**super().own_fields(options), "synonyms": synonyms}


@register_part("textbugger")
class TextBugger(SynonymAttack):
    """Five kinds of bugs; four without a file of synonyms."""

    label = "TextBugger"

    @override
    def candidates(self) -> Candidates:
        neighbours = self.synonyms and read_synonyms(Path(self.synonyms.path))
        return of_words(bugs(self.seed, neighbours))
