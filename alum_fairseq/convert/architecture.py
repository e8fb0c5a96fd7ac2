"""An encoder's shape, read from and written as fairseq's options or ``config.json``."""

from __future__ import annotations

import math
import shlex
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

# Position embeddings start after the index of the padding symbol, 1, in fairseq and in RoBERTa.
FIRST_POSITION = 2

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
    """Hyper-parameters of an encoder.

    Attributes:
        layers: number of layers.
        width: size of the embeddings and hidden states.
        ffn_width: size of the hidden layer of the feed-forward networks.
        heads: number of attention heads.
        max_positions: maximum number of tokens in a sequence.
        activation: fairseq's name of the activation function.
        eps: epsilon of the layer normalisations.
        dropout: dropout of embeddings and hidden states.
        attention_dropout: dropout of attention weights.
        pooler_dropout: dropout of the classification head.
        prenorm: whether layers are normalised before each block (and once at the end) rather than
            after each.
        tied: whether the LM head shares its output weights with the embeddings.
    """

    layers: int
    width: int
    ffn_width: int
    heads: int
    max_positions: int
    activation: str
    eps: float
    dropout: float
    attention_dropout: float
    pooler_dropout: float
    prenorm: bool
    tied: bool

    @property
    def options(self) -> dict[str, Any]:
        """fairseq's options, under their names in a checkpoint."""
        options: dict[str, Any] = {
            "arch": "roberta",
            "encoder_layers": self.layers,
            "encoder_embed_dim": self.width,
            "encoder_ffn_embed_dim": self.ffn_width,
            "encoder_attention_heads": self.heads,
            "max_positions": self.max_positions,
            "activation_fn": self.activation,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "pooler_dropout": self.pooler_dropout,
            "encoder_normalize_before": self.prenorm,
            "untie_weights_roberta": not self.tied,
        }
        if self.eps != FAIRSEQ_EPS:
            options.update(arch="alum_roberta", alum_layer_norm_eps=self.eps)
        return options

    @property
    def config(self) -> dict[str, Any]:
        """The entries of a ``config.json``."""
        return {
            "model_type": PRENORM if self.prenorm else "roberta",
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "intermediate_size": self.ffn_width,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.max_positions + FIRST_POSITION,
            "hidden_act": _HF_ACTIVATIONS[self.activation],
            "layer_norm_eps": self.eps,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "classifier_dropout": self.pooler_dropout,
            "tie_word_embeddings": self.tied,
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
            layers=config.integer("num_hidden_layers"),
            width=config.integer("hidden_size"),
            ffn_width=config.integer("intermediate_size"),
            heads=config.integer("num_attention_heads"),
            max_positions=rows - first,
            activation=ACTIVATIONS[config.choice("hidden_act", ACTIVATIONS, "gelu")],
            eps=config.positive("layer_norm_eps", 1e-12),
            dropout=dropout,
            attention_dropout=config.probability("attention_probs_dropout_prob", 0.1),
            pooler_dropout=config.probability("classifier_dropout", dropout),
            prenorm=family == PRENORM,
            tied=config.choice("tie_word_embeddings", (True, False), True),
        )

    @classmethod
    def of_options(cls, options: Namespace, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
        """From the options and the weight shapes of a fairseq checkpoint.

        Args:
            options: the model's options, with defaults filled in.
            shapes: of the encoder's weights, under fairseq's current names within the encoder.

        Raises:
            UsageError: transformers has no such RoBERTa; the message names the option.
        """

        def require(allowed: bool, option: str, right: str) -> None:
            if not allowed:
                value = getattr(options, option)
                raise UsageError(
                    f"the checkpoint was trained with {option}={value!s:.100}: {right}"
                )

        for option, only in _FIXED_OPTIONS.items():
            right = f"RoBERTa in transformers supports {only} only"
            require(getattr(options, option, only) == only, option, right)
        known = ", ".join(_HF_ACTIVATIONS)
        require(
            str(options.activation_fn) in _HF_ACTIVATIONS,
            "activation_fn",
            f"RoBERTa in transformers supports {known}",
        )
        layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
        try:
            positions, width = shapes["embed_positions.weight"]
            ffn_width, _ = shapes["layers.0.fc1.weight"]
        except (KeyError, ValueError):
            raise UsageError("the checkpoint does not contain a RoBERTa encoder") from None
        if positions <= FIRST_POSITION:
            raise UsageError(
                f"the checkpoint has {positions} position embeddings: it must have more than "
                f"{FIRST_POSITION}"
            )
        heads = options.encoder_attention_heads
        require(
            type(heads) is int and heads > 0 and width % heads == 0,
            "encoder_attention_heads",
            f"it must divide the width of the encoder, {width}",
        )
        for option in ("dropout", "attention_dropout", "pooler_dropout"):
            value = getattr(options, option)
            fine = type(value) in (int, float) and 0 <= value <= 1
            require(fine, option, "it must be from 0 to 1")
        return cls(
            layers=len(layers),
            width=width,
            ffn_width=ffn_width,
            heads=heads,
            max_positions=positions - FIRST_POSITION,
            activation=options.activation_fn,
            eps=getattr(options, "alum_layer_norm_eps", FAIRSEQ_EPS),
            dropout=options.dropout,
            attention_dropout=options.attention_dropout,
            pooler_dropout=options.pooler_dropout,
            prenorm=options.encoder_normalize_before,
            tied=not options.untie_weights_roberta,
        )


def command_line(options: Mapping[str, Any]) -> list[str]:
    """A checkpoint's options as command-line arguments; switches that are off are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(shlex.quote(str(value)))
    return words


@dataclass(frozen=True)
class Config:
    """A ``config.json``, whose entries are validated when they are read.

    Attributes:
        path: path of the file.
        values: its entries.
    """

    path: Path
    values: Mapping[str, Any]

    def choice(self, name: str, allowed: Any, default: Any = None) -> Any:
        """An entry with one of the allowed values."""
        value = self.values.get(name, default)
        if not any(value is one or value == one for one in allowed):
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
