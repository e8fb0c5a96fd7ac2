"""What ``fairseq-train`` must be told to build the model of a checkpoint again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from torch import Tensor

from alum_fairseq.checkpoints.fit import encoder_sizes
from alum_fairseq.checkpoints.model import require_roberta

# What decides, beside the weights, what a RoBERTa computes, and how much of it training drops.
_OPTIONS = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("activation_fn", "pooler_activation_fn", "encoder_normalize_before", "layernorm_embedding"),
    *("untie_weights_roberta", "spectral_norm_classification_head", "alum_layer_norm_eps"),
    *("dropout", "attention_dropout", "activation_dropout", "pooler_dropout"),
)


def architecture_options(
    options: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path
) -> dict[str, Any]:
    """``arch``, those options of it that are not its defaults, and ``max_positions``.

    Args:
        options: of the model, as the checkpoint has them, defaults not filled in.
        weights: of the checkpoint; sizes are theirs.
        path: of the checkpoint, for messages.

    Raises:
        UsageError: it is no RoBERTa.
    """
    arch = options.get("arch") or options.get("_name")
    require_roberta(arch, path)
    sizes = encoder_sizes(weights, path)
    del sizes["symbols"]
    usual, own = Namespace(), Namespace(**{**options, **sizes})
    for each in (usual, own):
        ARCH_CONFIG_REGISTRY[arch](each)  # fills defaults in
    found = {name: getattr(own, name, None) for name in _OPTIONS}
    others = {name: value for name, value in found.items() if value != getattr(usual, name, None)}
    return {"arch": arch, **others, "max_positions": sizes["max_positions"]}


def command_line(options: Mapping[str, Any]) -> list[str]:
    """A checkpoint's options as words of a command line; switches that are off are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is not False:
            words.append(f"--{name.replace('_', '-')}")
        if not isinstance(value, bool):
            words.append(str(value))
    return words
