"""Words replaced by synonyms of WordNet until the model errs."""

from __future__ import annotations

from typing_extensions import override

from alum_fairseq.robustness.attacks.wordnet import wordnet_synonyms
from alum_fairseq.robustness.parts.greedy import GreedyAttack
from alum_fairseq.robustness.parts.part import register_part
from alum_fairseq.robustness.types import Candidates


@register_part("wordnet")
class Synonyms(GreedyAttack):
    """Synonyms, where NLTK and its WordNet are installed."""

    label = "synonyms"
    optional = True

    @override
    def candidates(self) -> Candidates:
        return wordnet_synonyms()
