"""``alum-convert from-hf``: convert a transformers folder to a fairseq checkpoint."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alum_fairseq.checkpoints.architecture import command_line
from alum_fairseq.checkpoints.reading import DEFAULT_HEAD, heads_of
from alum_fairseq.convert.architecture import Architecture, Config
from alum_fairseq.convert.folder import read_config, read_tensors
from alum_fairseq.convert.read_tokenizer import (
    SourceTokenizer,
    read_tokenizer,
    symbol_order,
    write_dictionary,
)
from alum_fairseq.convert.same_ids import (
    differing,
    ids_of,
    ids_of_transformers,
    note_of,
    texts_of,
)
from alum_fairseq.convert.weights import (
    TOKEN_HEADS,
    WORDS,
    Tensors,
    encoder_prefix,
    kind_of,
    number_of_labels,
    to_fairseq,
)
from alum_fairseq.data.record import CLASSES
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_folder, whole_folder

CHECKPOINT = "model.pt"

# The tasks of heads, by what transformers calls the models; others are sentence_prediction's.
_TASKS = {
    "MultipleChoice": "alum_sentence_ranking",
    "QuestionAnswering": "alum_span_prediction",
    "TokenClassification": "alum_sequence_tagging",
}


def convert(source: Path, target: Path) -> tuple[list[str], str]:
    """Convert a folder.

    Args:
        source: folder of ``config.json``, tensors and a tokenizer.
        target: folder to create, with ``model.pt``, which names a classifier's classes,
            ``dict.txt``, and the files of the subword encoder.

    Returns:
        Notes, such as on what was not converted; and commands that use the result.

    Raises:
        UsageError: the folder is broken, or fairseq has no such model.
    """
    config = read_config(existing_folder(source))
    architecture = Architecture.of_config(config)
    tokenizer = read_tokenizer(source, config.values)
    tensors = read_tensors(source)
    rows = config.integer("vocab_size")
    order = symbol_order(tokenizer, rows, _unknowns(tensors, tokenizer, rows))
    weights, lost = to_fairseq(tensors, config, architecture, order)
    has_head = bool(heads_of(weights))
    named = has_head and not _is_regression(config) and kind_of(config) != "QuestionAnswering"
    labels = label_names(config) if named else None
    notes = [f"not carried over: {phrase}" for phrase in lost]
    if kind_of(config) == "MultipleChoice":
        notes.append(
            "fairseq's sentence_ranking reads a choice before its context: a model that was "
            "trained with the context first answers otherwise, until it is fine-tuned"
        )
    with whole_folder(target) as folder:
        notes += _write_vocabulary(tokenizer, source, order, folder)
        torch.save(_checkpoint(weights, config, architecture, labels), folder / CHECKPOINT)
    return notes, _next_steps(Vocabulary.load(target), architecture, config, has_head, labels)


def _write_vocabulary(
    tokenizer: SourceTokenizer, source: Path, order: list[int], folder: Path
) -> list[str]:
    """Write the first of the encoders that splits text as transformers does, or the last.

    Returns:
        Notes on what it splits otherwise.

    Raises:
        UsageError: too much.
    """
    texts: list[str] = []
    expected: list[list[int]] = []
    if tokenizer.loaded is not None:  # else there is nothing to compare with
        texts = texts_of(tokenizer.loaded, tokenizer.special)
        expected = ids_of_transformers(source, texts) or ids_of(tokenizer.loaded, texts)
    numbers = {number: i for i, number in enumerate(order)}
    for encoder in tokenizer.encoders:
        for file in folder.iterdir():
            file.unlink()
        for name, content in encoder.files.items():
            (folder / name).write_bytes(content)
        write_dictionary(tokenizer.ids, encoder.numbers, order, folder / DICTIONARY)
        wrong = differing(Vocabulary.load(folder), texts, expected, numbers)
        if not wrong:
            break
    notes = note_of(wrong, texts, source)
    own = tokenizer.encoders[0]
    if encoder is not own:
        notes.append(f"--bpe {own.bpe} would split text differently: it is --bpe {encoder.bpe}")
    return notes


def _unknowns(tensors: Tensors, tokenizer: SourceTokenizer, rows: int) -> frozenset[int]:
    """The rows that ``to-hf`` added after ``<mask>``: copies of the row of ``<unk>``."""
    unknown, mask = tokenizer.special[3:]
    embeddings = tensors.get(f"{encoder_prefix(tensors)}{WORDS}", torch.empty(0))
    if embeddings.dim() != 2 or len(embeddings) != rows or max(unknown, mask) >= rows:
        return frozenset()  # to_fairseq reports what is wrong
    added = frozenset(range(mask + 1, rows))
    copies = (embeddings[mask + 1 :] == embeddings[unknown]).all()
    return added if copies else frozenset()


def _is_regression(config: Config) -> bool:
    one = config.values.get("problem_type") == "regression" or number_of_labels(config) == 1
    return one and kind_of(config) not in _TASKS


def _checkpoint(
    weights: dict[str, Tensor],
    config: Config,
    architecture: Architecture,
    labels: list[str] | None,
) -> dict[str, Any]:
    """A checkpoint as fairseq writes it before the first update."""
    args = Namespace(
        **architecture.options,
        # That of choices needs data to be set up: what it is for is in ranking_head_name.
        task="masked_lm" if kind_of(config) not in TOKEN_HEADS else _TASKS[kind_of(config)],
        criterion="masked_lm",
        data=".",
        tokens_per_sample=architecture.max_positions,
        regression_target=_is_regression(config),
        # BERT has one [SEP] between two texts: that which ends the first.
        **({"separator_token": None} if config.values["model_type"] == "bert" else {}),
    )
    if kind_of(config) in TOKEN_HEADS:
        args.num_classes = number_of_labels(config)
    if kind_of(config) == "MultipleChoice":
        args.ranking_head_name = DEFAULT_HEAD
        if labels:  # else config.json does not tell
            args.num_classes = len(labels)
    return {
        "args": args,
        "model": weights,
        "task_state": {} if labels is None else {CLASSES: labels},
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


def label_names(config: Config) -> list[str] | None:
    """Names of the classes, None if they have none; a UsageError if ``id2label`` is broken."""
    count = number_of_labels(config)
    unnamed = {str(i): f"LABEL_{i}" for i in range(count)}  # as transformers writes them
    found = config.values.get("id2label") or unnamed
    if found == unnamed:
        return None
    named = [found.get(str(i)) for i in range(count)]
    labels = [str(name).strip() for name in named if type(name) in (str, int)]
    if len(labels) < count or not all(labels):
        raise UsageError(f"{config.path}: id2label does not name the classes from 0 to {count - 1}")
    if len(set(labels)) < count:
        raise UsageError(f"{config.path}: id2label names a class twice")
    return labels


def _next_steps(
    vocabulary: Vocabulary,
    architecture: Architecture,
    config: Config,
    has_head: bool,
    labels: list[str] | None,
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
        f"{folder / CHECKPOINT} {shlex.join(command_line(architecture.options))} --task ... "
        "--criterion ...",
    ]
    if kind_of(config) in _TASKS:
        task = _TASKS[kind_of(config)]
        lines.append(f"Its head is kept by --task {task} --criterion {task}.")
    elif has_head:
        kind = "--regression-target " if _is_regression(config) else ""
        order = f", with alum-prepare --labels {shlex.join(labels)}" if labels else ""
        lines.append(
            f"Its classification head is kept by --task sentence_prediction {kind}--num-classes "
            f"{number_of_labels(config)}{order}."
        )
        if config.values["model_type"] == "bert":
            lines.append("It reads pairs with one separator, as BERT: without --separator-token.")
    return "\n".join(lines)
