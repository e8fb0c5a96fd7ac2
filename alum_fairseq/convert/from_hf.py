"""``alum-convert from-hf``: convert a transformers folder to a fairseq checkpoint."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alum_fairseq.convert.architecture import Architecture, Config, command_line
from alum_fairseq.convert.folder import read_config, read_tensors
from alum_fairseq.convert.read_tokenizer import (
    FairseqTokenizer,
    read_tokenizer,
    symbol_order,
    write_dictionary,
)
from alum_fairseq.convert.weights import (
    DEFAULT_HEAD,
    HEADS,
    WORDS,
    Tensors,
    encoder_prefix,
    number_of_labels,
    to_fairseq,
)
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_folder, whole_folder

CHECKPOINT = "model.pt"
LABELS = Path("label") / DICTIONARY


def convert(source: Path, target: Path) -> tuple[list[str], str]:
    """Convert a folder.

    Args:
        source: folder of ``config.json``, tensors and a tokenizer.
        target: folder to create, with ``model.pt``, ``dict.txt``, the files of the subword encoder,
            and ``label/dict.txt`` if there is a classification head.

    Returns:
        Notes on what was not converted or is otherwise worth knowing; and commands to go on with.

    Raises:
        UsageError: the folder is broken, or fairseq has no such model.
    """
    config = read_config(existing_folder(source))
    architecture = Architecture.of_config(config)
    tokenizer = read_tokenizer(source, config.values["model_type"])
    tensors = read_tensors(source)
    rows = config.integer("vocab_size")
    order = symbol_order(tokenizer, rows, _unknowns(tensors, tokenizer, rows))
    weights, lost = to_fairseq(tensors, config, architecture, order)
    has_head = f"{HEADS}{DEFAULT_HEAD}.out_proj.weight" in weights
    notes = [*(f"not carried over: {phrase}" for phrase in lost), *tokenizer.notes]
    with whole_folder(target) as folder:
        for name, content in tokenizer.files.items():
            (folder / name).write_bytes(content)
        renamed = write_dictionary(tokenizer, order, folder / DICTIONARY)
        if renamed:
            notes.append(
                f"{renamed} tokens cannot be symbols of fairseq (added later, or with whitespace): "
                f"their rows are kept, under the names madeupword... in {DICTIONARY}"
            )
        torch.save(_checkpoint(weights, config, architecture), folder / CHECKPOINT)
        if has_head:
            # The names of the classes, in order, as the dictionary that fairseq's task reads.
            lines = [f"{label} 1\n" for label in label_names(config)]
            (folder / LABELS).parent.mkdir()
            (folder / LABELS).write_text("".join(lines), encoding="utf-8")
    return notes, _next_steps(Vocabulary.load(target), architecture, config, has_head)


def _unknowns(tensors: Tensors, tokenizer: FairseqTokenizer, rows: int) -> frozenset[int]:
    """The rows that ``to-hf`` added after ``<mask>``: copies of the row of ``<unk>``."""
    unknown, mask = tokenizer.special[3:]
    embeddings = tensors.get(f"{encoder_prefix(tensors)}{WORDS}", torch.empty(0))
    if embeddings.dim() != 2 or len(embeddings) != rows or max(unknown, mask) >= rows:
        return frozenset()  # to_fairseq reports what is wrong
    added = frozenset(range(mask + 1, rows))
    copies = (embeddings[mask + 1 :] == embeddings[unknown]).all()
    return added if copies else frozenset()


def _is_regression(config: Config) -> bool:
    return config.values.get("problem_type") == "regression" or number_of_labels(config) == 1


def _checkpoint(
    weights: dict[str, Tensor], config: Config, architecture: Architecture
) -> dict[str, Any]:
    """A checkpoint as fairseq writes it before the first update."""
    args = Namespace(
        **architecture.options,
        task="masked_lm",
        criterion="masked_lm",
        data=".",
        tokens_per_sample=architecture.max_positions,
        regression_target=_is_regression(config),
    )
    return {
        "args": args,
        "model": weights,
        "optimizer_history": [
            {
                "criterion_name": "MaskedLmLoss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "extra_state": {
            "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": None,
        },
    }


def label_names(config: Config) -> list[str]:
    """Names of the classes; a UsageError if ``id2label`` is broken."""
    count = number_of_labels(config)
    found = config.values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
    labels = [found.get(str(i)) for i in range(count)]
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise UsageError(f"{config.path}: id2label does not name the classes from 0 to {count - 1}")
    if len(set(labels)) < count:
        raise UsageError(f"{config.path}: id2label names a class twice")
    return labels


def _next_steps(
    vocabulary: Vocabulary, architecture: Architecture, config: Config, has_head: bool
) -> str:
    """Commands that use the result, to be copied."""
    folder = vocabulary.folder
    arguments = [f'"{folder}"', 'user_dir="alum_fairseq"']
    arguments += [f'{name}="{value}"' for name, value in vocabulary.options.items()]
    lines = [
        "In Python:",
        "    from fairseq.models.roberta import RobertaModel",
        f"    roberta = RobertaModel.from_pretrained({', '.join(arguments)}).eval()",
        "To continue training, with data prepared with this vocabulary "
        f"(alum-prepare --vocabulary {folder}):",
        "    fairseq-train DATA --user-dir alum_fairseq --finetune-from-model "
        f"{folder / CHECKPOINT} {' '.join(command_line(architecture.options))} --task ... "
        "--criterion ...",
    ]
    if has_head:
        kind = "--regression-target " if _is_regression(config) else ""
        lines.append(
            f"Its classification head is kept by --task sentence_prediction {kind}--num-classes "
            f"{number_of_labels(config)}, if the labels are in the order of {folder / LABELS}."
        )
    return "\n".join(lines)
