"""PWWS (Ren et al. 2019, https://aclanthology.org/P19-1103/): words replaced by synonyms."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from alum_fairseq.robustness.attacks.greedy import WEIGHTED
from alum_fairseq.robustness.attacks.wordnet import wordnet_synonyms
from alum_fairseq.robustness.attacks.words import Candidates, of_words
from alum_fairseq.robustness.parts.part import register_part
from alum_fairseq.robustness.parts.substitution import Substitution
from alum_fairseq.robustness.store import digest, text_digest


@register_part("pwws")
@dataclass
class PWWS(Substitution):
    """Synonyms of WordNet, where NLTK and its WordNet are installed.

    Attributes:
        wordnet: the folder of the dictionary files; None: NLTK's own.
        sha256: of the files in it.
    """

    wordnet: str | None = field(default=None, compare=False)
    sha256: str | None = None
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
    def own_fields(cls, options: Namespace) -> dict[str, Any]:
        found = super().own_fields(options)
        if options.wordnet is not None:
            files = filter(Path.is_file, sorted(options.wordnet.glob("*")))
            sha256 = text_digest([digest(file) for file in files])
            found |= {"wordnet": str(options.wordnet), "sha256": sha256}
        return found

    @override
    def words(self) -> Candidates:
        return of_words(wordnet_synonyms(self.wordnet and Path(self.wordnet)))
