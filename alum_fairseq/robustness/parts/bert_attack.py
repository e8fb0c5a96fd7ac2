"""Words replaced by those that a masked language model finds probable: BERT-Attack and BAE."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.attacks.greedy import LEFT_OUT, MASKED
from alum_fairseq.robustness.attacks.language_model import fitting_words, load_language_model
from alum_fairseq.robustness.attacks.words import Candidates
from alum_fairseq.robustness.parts.greedy import Source
from alum_fairseq.robustness.parts.part import register_part
from alum_fairseq.robustness.parts.substitution import Substitution


@register_part("bert-attack")
@dataclass
class BertAttack(Substitution):
    """Li et al. 2020 (arXiv 2004.09984): the language model sees the word that it replaces."""

    language_model: Source | None = None
    masked: ClassVar[bool] = False
    label = "BERT-Attack"
    importance = MASKED
    keeps_part_of_speech = False

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        group.add_argument(
            "--attack-lm",
            type=Path,
            metavar="FILE",
            help="for bert-attack and bae: fairseq's RoBERTa with its masked-LM head, such as "
            "roberta.base/model.pt, its vocabulary beside it",
        )

    @classmethod
    @override
    def own_fields(cls, options: Namespace) -> dict[str, Any]:
        model = Source.of("--attack-lm", options.attack_lm)
        return {**super().own_fields(options), "language_model": model}

    @override
    def words(self) -> Candidates:
        source = self.language_model
        if source is None:
            raise UsageError("--attack-lm FILE is not given")
        model = load_language_model(Path(source.path), source.option, self.device)
        # One more, since the word itself is among them.
        return fitting_words(model, 1 + self.limits.max_candidates, self.masked)


@register_part("bae")
class BAE(BertAttack):
    """Garg and Ramakrishnan 2020 (arXiv 2004.01970), its replacement: a mask hides the word."""

    label = "BAE, replace"
    masked = True
    importance = LEFT_OUT
    keeps_part_of_speech = True
