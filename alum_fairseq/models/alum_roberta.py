"""``--arch alum_roberta``: fairseq's RoBERTa with the layer normalisation's epsilon as an option.

fairseq fixes it at 1e-5. BERT was trained with 1e-12, and so is every RoBERTa that starts from the
defaults of Hugging Face's ``RobertaConfig``; the difference moves the hidden states of a 6-layer
BERT by up to 1e-3 (measured; see ``tests/convert/test_convert.py``).
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta.model import base_architecture
from fairseq.modules import LayerNorm
from fairseq.utils import safe_getattr

from alum_fairseq.errors import UsageError

FAIRSEQ_EPS = 1e-5


@register_model("alum_roberta")
class AlumRobertaModel(RobertaModel):
    """RoBERTa whose layer normalisations, the LM head's included, have an epsilon of choice."""

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """Add RoBERTa's options, and the epsilon."""
        RobertaModel.add_args(parser)
        parser.add_argument(
            "--alum-layer-norm-eps",
            type=float,
            metavar="E",
            help="epsilon of every layer normalisation (fairseq's RoBERTa: 1e-5, BERT: 1e-12)",
        )

    @classmethod
    def build_model(cls, args: Any, task: Any) -> AlumRobertaModel:
        """Build the model.

        Raises:
            UsageError: the epsilon is not positive.
        """
        eps = safe_getattr(args, "alum_layer_norm_eps", FAIRSEQ_EPS)
        if not eps > 0:
            raise UsageError(f"--alum-layer-norm-eps is {eps}: it must be positive")
        model = super().build_model(args, task)
        kind = type(LayerNorm(1))  # apex has its own
        for module in model.modules():
            if isinstance(module, kind):
                module.eps = eps
        return model


@register_model_architecture("alum_roberta", "alum_roberta")
def alum_roberta(args: Any) -> None:
    """RoBERTa's defaults: those of the base model."""
    args.alum_layer_norm_eps = safe_getattr(args, "alum_layer_norm_eps", FAIRSEQ_EPS)
    base_architecture(args)
