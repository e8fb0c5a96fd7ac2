"""A small RoBERTa in memory, with as much of a task and a batch as it needs."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models.roberta import RobertaModel


def make_dictionary(words: int = 40) -> Dictionary:
    dictionary = Dictionary()
    for i in range(words):
        dictionary.add_symbol(f"w{i}")
    dictionary.add_symbol("<mask>")
    return dictionary


def make_task(dictionary: Dictionary | None = None, **attributes: Any) -> SimpleNamespace:
    """As much of a fairseq task as a criterion and a model look at."""
    dictionary = dictionary or make_dictionary()
    attributes.setdefault("cfg", Namespace(_name="masked_lm"))
    return SimpleNamespace(
        source_dictionary=dictionary,
        target_dictionary=dictionary,
        max_positions=lambda: 64,
        **attributes,
    )


def make_model(task: SimpleNamespace | None = None, **options: Any) -> RobertaModel:
    """A small RoBERTa, built by fairseq itself; options are those of the architecture."""
    args = Namespace(
        **{
            "encoder_layers": 2,
            "encoder_embed_dim": 16,
            "encoder_ffn_embed_dim": 32,
            "encoder_attention_heads": 2,
            "max_positions": 64,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            **options,
        }
    )
    model = RobertaModel.build_model(args, task or make_task())
    # fairseq's initialisation is so small that an untrained model's predictions hardly move.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def make_sample(
    dictionary: Dictionary, lengths: tuple[int, ...] = (9, 6, 4), masked: int = 2
) -> dict[str, Any]:
    """A batch for masked language modelling, with padding, as fairseq's task makes it."""
    tokens = torch.full((len(lengths), max(lengths)), dictionary.pad())
    target = tokens.clone()
    for row, length in enumerate(lengths):
        words = torch.randint(dictionary.nspecial, len(dictionary) - 1, (length,))
        words[0], words[-1] = dictionary.bos(), dictionary.eos()
        tokens[row, :length] = words
        for position in range(1, 1 + masked):
            target[row, position] = words[position]
            tokens[row, position] = dictionary.index("<mask>")
    return {
        "id": torch.arange(len(lengths)),
        "net_input": {
            "src_tokens": tokens,
            "src_lengths": torch.tensor(lengths),
        },
        "target": target,
        "nsentences": len(lengths),
        "ntokens": sum(lengths),
    }
