"""What both sides must know of a model to build it: fairseq's options, and ``config.json``."""

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

# config.json's hidden_act: fairseq's --activation-fn. The three of GPT-2's kind are one function.
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
_HF_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}

# config.json's model_type: the prefix of the encoder's tensors.
FAMILIES: Mapping[str, str] = {
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "camembert": "roberta.",
    "roberta-prelayernorm": "roberta_prelayernorm.",
    "bert": "bert.",
}
PRENORM = "roberta-prelayernorm"

# fairseq's positions begin after the index of the padding symbol, 1; so do RoBERTa's.
FIRST_POSITION = 2


@dataclass(frozen=True)
class Architecture:
    """Shapes and constants of an encoder.

    Attributes:
        layers: how many.
        width: of the embeddings and hidden states.
        ffn_width: of the hidden layer of the feed-forward networks.
        heads: of attention.
        max_positions: the most tokens of a sequence.
        activation: fairseq's name for it.
        eps: of the layer normalisations.
        dropout: of embeddings and hidden states.
        attention_dropout: of attention weights.
        pooler_dropout: of the classification head.
        prenorm: normalisation before each block, and once at the end, rather than after each.
        tied: whether the LM head's output weights are the embeddings.
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
        """fairseq's options, by the names that they have in a checkpoint."""
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
        """The same as entries of a ``config.json``."""
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
        """Read a ``config.json``.

        Raises:
            UsageError: fairseq has no such model; the message names the entry.
        """
        family = config.choice("model_type", FAMILIES)
        config.choice("position_embedding_type", ("absolute",), "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            config.choice(name, (False, None), False)
        rows = config.whole("max_position_embeddings")
        # BERT counts from 0, RoBERTa from after the index of the padding token.
        before = 0 if family == "bert" else config.whole("pad_token_id", 1, least=0) + 1
        if rows <= before:
            raise UsageError(f"{config.path}: max_position_embeddings is {rows}: no position")
        dropout = config.fraction("hidden_dropout_prob", 0.1)
        return cls(
            layers=config.whole("num_hidden_layers"),
            width=config.whole("hidden_size"),
            ffn_width=config.whole("intermediate_size"),
            heads=config.whole("num_attention_heads"),
            max_positions=rows - before,
            activation=ACTIVATIONS[config.choice("hidden_act", ACTIVATIONS, "gelu")],
            eps=config.positive("layer_norm_eps", 1e-12),
            dropout=dropout,
            attention_dropout=config.fraction("attention_probs_dropout_prob", 0.1),
            pooler_dropout=config.fraction("classifier_dropout", dropout),
            prenorm=family == PRENORM,
            tied=config.choice("tie_word_embeddings", (True, False), True),
        )

    @classmethod
    def of_options(cls, options: Namespace, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
        """Read the options of a fairseq checkpoint, and the shapes of its weights.

        Args:
            options: those of the model, defaults filled in.
            shapes: by the names that fairseq gives them today, relative to the encoder.

        Raises:
            UsageError: transformers' RoBERTa has no such model; the message names the option.
        """
        for option, wanted in _ONLY.items():
            value = getattr(options, option, wanted)
            if value != wanted:
                raise UsageError(
                    f"the checkpoint was trained with {option}={value!s:.100}: RoBERTa of "
                    f"transformers has {wanted} only"
                )
        if str(options.activation_fn) not in _HF_ACTIVATIONS:
            raise UsageError(
                f"the checkpoint was trained with activation_fn={options.activation_fn!s:.100}: "
                f"RoBERTa of transformers has {', '.join(_HF_ACTIVATIONS)}"
            )
        layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
        try:
            positions, width = shapes["embed_positions.weight"]
            ffn_width, _ = shapes["layers.0.fc1.weight"]
        except (KeyError, ValueError):
            raise UsageError("the checkpoint holds no encoder of RoBERTa") from None
        if positions <= FIRST_POSITION:
            raise UsageError(f"the checkpoint has {positions} rows of positions: no position")
        heads = options.encoder_attention_heads
        if type(heads) is not int or heads < 1 or width % heads:
            raise UsageError(
                f"the checkpoint was trained with encoder_attention_heads={heads!s:.100}: it must "
                f"divide its width, {width}"
            )
        for name in ("dropout", "attention_dropout", "pooler_dropout"):
            value = getattr(options, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise UsageError(
                    f"the checkpoint was trained with {name}={value!s:.100}: it must be from 0 to 1"
                )
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


# Options of fairseq's RoBERTa that transformers has no word for.
_ONLY: Mapping[str, Any] = {
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "encoder_learned_pos": True,
    "no_token_positional_embeddings": False,
    "spectral_norm_classification_head": False,
}


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options of a checkpoint as words of a command line; switches that are off are left out."""
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
    """The entries of a JSON file of a folder, checked as they are read.

    Attributes:
        path: of the file.
        values: its entries.
    """

    path: Path
    values: Mapping[str, Any]

    def choice(self, name: str, allowed: Any, default: Any = None) -> Any:
        """An entry that must be one of some values."""
        value = self.values.get(name, default)
        if not any(value is one or value == one for one in allowed):
            known = ", ".join(map(str, allowed))
            raise UsageError(f"{self.path}: {name} is {value!r}: known are {known}")
        return value

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An entry that must be an integer."""
        value = self._present(name, default)
        if type(value) is not int or value < least:
            raise UsageError(f"{self.path}: {name} is {value!r}, not an integer from {least}")
        return value

    def positive(self, name: str, default: float) -> float:
        """An entry that must be a number above 0."""
        value = self._number(name, default)
        if value <= 0:
            raise UsageError(f"{self.path}: {name} is {value}: it must be positive")
        return value

    def fraction(self, name: str, default: float) -> float:
        """An entry that must be a probability."""
        value = self._number(name, default)
        if not 0 <= value <= 1:
            raise UsageError(f"{self.path}: {name} is {value}: it must be from 0 to 1")
        return value

    def _number(self, name: str, default: float) -> float:
        value = self._present(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UsageError(f"{self.path}: {name} is {value!r}, not a number")
        return float(value)

    def _present(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise UsageError(f"{self.path} has no {name}")
        return value
