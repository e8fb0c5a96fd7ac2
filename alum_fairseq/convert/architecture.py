"""An encoder's shape, read from and written as fairseq's options or ``config.json``."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alum_fairseq.checkpoints.fit import FIRST_POSITION
from alum_fairseq.errors import UsageError
from alum_fairseq.models.alum_roberta import FAIRSEQ_EPS

# config.json's hidden_act to fairseq's --activation-fn. The three approximations of GELU by tanh
# are one function.
ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
# The other way: the first name of each function; gelu_fast is fairseq's old name of gelu_accurate.
_HF_ACTIVATIONS = {ours: hf for hf, ours in reversed(ACTIVATIONS.items())}
_HF_ACTIVATIONS["gelu_fast"] = "gelu_new"

PRENORM = "roberta-prelayernorm"
MODEL_TYPES = ("roberta", "xlm-roberta", "camembert", PRENORM, "bert")

# fairseq's options, and the entries of config.json that mean the same.
_SIZES = {
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
}
_DROPOUTS = {
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "pooler_dropout": "classifier_dropout",
}

# Options of fairseq's RoBERTa of which transformers supports one value only.
_FIXED_OPTIONS: Mapping[str, Any] = {
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "encoder_learned_pos": True,
    "no_token_positional_embeddings": False,
    "spectral_norm_classification_head": False,
}


@dataclass(frozen=True)
class Architecture:
    """Hyper-parameters of an encoder, under the names of fairseq's options."""

    encoder_layers: int
    encoder_embed_dim: int
    encoder_ffn_embed_dim: int
    encoder_attention_heads: int
    max_positions: int
    activation_fn: str
    dropout: float
    attention_dropout: float
    pooler_dropout: float
    encoder_normalize_before: bool
    untie_weights_roberta: bool
    alum_layer_norm_eps: float

    @property
    def options(self) -> dict[str, Any]:
        """fairseq's options, under their names in a checkpoint."""
        options = {"arch": "alum_roberta", **asdict(self)}
        if self.alum_layer_norm_eps == FAIRSEQ_EPS:
            del options["alum_layer_norm_eps"]
            options["arch"] = "roberta"
        return options

    @property
    def config(self) -> dict[str, Any]:
        """The entries of a ``config.json``."""
        return {
            "model_type": PRENORM if self.encoder_normalize_before else "roberta",
            **{hf: getattr(self, ours) for ours, hf in (_SIZES | _DROPOUTS).items()},
            "max_position_embeddings": self.max_positions + FIRST_POSITION,
            "hidden_act": _HF_ACTIVATIONS[self.activation_fn],
            "layer_norm_eps": self.alum_layer_norm_eps,
            "tie_word_embeddings": not self.untie_weights_roberta,
        }

    @classmethod
    def of_config(cls, config: Config) -> Architecture:
        """From a ``config.json``.

        Raises:
            UsageError: fairseq has no such model; the message names the entry.
        """
        family = config.choice("model_type", MODEL_TYPES)
        config.choice("position_embedding_type", ("absolute",), "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            config.choice(name, (False, None), False)
        rows = config.integer("max_position_embeddings")
        # BERT's positions start at 0, RoBERTa's after the index of the padding token.
        first = 0 if family == "bert" else config.integer("pad_token_id", 1, minimum=0) + 1
        if rows <= first:
            raise UsageError(
                f"{config.path}: max_position_embeddings is {rows}: it must be over {first}"
            )
        dropout = config.probability("hidden_dropout_prob", 0.1)
        return cls(
            **{ours: config.integer(hf) for ours, hf in _SIZES.items()},
            max_positions=rows - first,
            activation_fn=ACTIVATIONS[config.choice("hidden_act", ACTIVATIONS, "gelu")],
            dropout=dropout,
            attention_dropout=config.probability("attention_probs_dropout_prob", 0.1),
            pooler_dropout=config.probability("classifier_dropout", dropout),
            encoder_normalize_before=family == PRENORM,
            untie_weights_roberta=not config.choice("tie_word_embeddings", (True, False), True),
            alum_layer_norm_eps=config.positive("layer_norm_eps", 1e-12),
        )

    @classmethod
    def of_options(cls, options: Namespace, sizes: Mapping[str, int]) -> Architecture:
        """From the options of a fairseq checkpoint, defaults filled in, and its weights' sizes.

        Raises:
            UsageError: transformers has no such RoBERTa; the message names the option.
        """
        if sizes["max_positions"] < 1:
            raise UsageError(
                "the checkpoint's position embeddings must have more than "
                f"{FIRST_POSITION} rows, not {sizes['max_positions'] + FIRST_POSITION}"
            )
        _check_options(options, sizes["encoder_embed_dim"])
        return cls(
            **sizes,
            encoder_attention_heads=options.encoder_attention_heads,
            activation_fn=options.activation_fn,
            **{name: getattr(options, name) for name in _DROPOUTS},
            encoder_normalize_before=options.encoder_normalize_before,
            untie_weights_roberta=options.untie_weights_roberta,
            alum_layer_norm_eps=getattr(options, "alum_layer_norm_eps", FAIRSEQ_EPS),
        )


def _check_options(options: Namespace, width: int) -> None:
    """Raise a UsageError where transformers' RoBERTa has no such option, or has no such value."""
    found = _FIXED_OPTIONS | vars(options)
    heads = found["encoder_attention_heads"]

    def require(name: str, right: str, fine: bool) -> None:
        if not fine:
            value = f"{found[name]!s:.100}"
            raise UsageError(f"the checkpoint was trained with {name}={value}: {right}")

    for name, value in _FIXED_OPTIONS.items():
        require(name, f"RoBERTa in transformers supports {value} only", found[name] == value)
    known = ", ".join(_HF_ACTIVATIONS)
    activation = str(found["activation_fn"])
    require("activation_fn", f"transformers supports {known}", activation in _HF_ACTIVATIONS)
    divides = type(heads) is int and heads > 0 and width % heads == 0
    require("encoder_attention_heads", f"it must divide the encoder's width, {width}", divides)
    for name in _DROPOUTS:
        fine = type(found[name]) in (int, float) and 0 <= found[name] <= 1
        require(name, "it must be from 0 to 1", fine)


@dataclass(frozen=True)
class Config:
    """The entries of a ``config.json``, which are validated when they are asked for."""

    path: Path
    values: Mapping[str, Any]

    def choice(self, name: str, allowed: Any, default: Any = None) -> Any:
        """An entry with one of the allowed values."""
        value = self.values.get(name, default)
        if value not in list(allowed):
            known = ", ".join(map(str, allowed))
            raise UsageError(f"{self.path}: {name} is {value!r}: known are {known}")
        return value

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """An integer, not below a minimum."""
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise UsageError(f"{self.path} has no {name}")
        if type(value) is not int or value < minimum:
            raise UsageError(f"{self.path}: {name} is {value!r}, not an integer from {minimum}")
        return value

    def positive(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self._number(name, default)
        if value <= 0:
            raise UsageError(f"{self.path}: {name} is {value}: it must be positive")
        return value

    def probability(self, name: str, default: float) -> float:
        """A number from 0 to 1."""
        value = self._number(name, default)
        if not 0 <= value <= 1:
            raise UsageError(f"{self.path}: {name} is {value}: it must be from 0 to 1")
        return value

    def _number(self, name: str, default: float) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UsageError(f"{self.path}: {name} is {value!r}, not a number")
        return float(value)
