"""``alum-convert to-hf``: a checkpoint of fairseq becomes a folder of transformers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from safetensors.torch import save
from torch import Tensor

from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.checkpoints.model import require_roberta
from alum_fairseq.convert.architecture import Architecture
from alum_fairseq.convert.folder import CONFIG, WEIGHTS, write_json
from alum_fairseq.convert.weights import ENCODER, Tensors, current_names, to_transformers
from alum_fairseq.convert.write_tokenizer import Template, make_tokenizer, write_tokenizer
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import whole_folder


def convert(checkpoint: Checkpoint, target: Path) -> tuple[list[str], str]:
    """Convert a checkpoint.

    Args:
        checkpoint: with or without a head.
        target: the folder to make.

    Returns:
        What was not carried over, or is otherwise worth knowing; and how to go on.

    Raises:
        UsageError: the checkpoint is broken, or transformers has no such model.
    """
    weights = current_names(checkpoint.weights)
    options = _with_defaults(checkpoint)
    head = checkpoint.head
    rows = _rows(checkpoint, weights)
    architecture = _architecture(weights, options)
    vocabulary = _vocabulary(checkpoint, rows)
    notes: list[str] = []
    tokenizer, unknowns = make_tokenizer(vocabulary, _template(checkpoint, vocabulary, notes))
    if unknowns:
        notes.append(
            f"{unknowns} subwords are not in {DICTIONARY}, and <unk> to fairseq: they have ids "
            f"from {rows} to {rows + unknowns - 1}, whose rows are copies of that of <unk>"
        )
    tensors = to_transformers(Tensors(weights, checkpoint.path), architecture, head, unknowns)
    config = architecture.config | _common(rows + unknowns, tensors)
    config |= _prediction(checkpoint, options, architecture, notes)
    with whole_folder(target) as folder:
        # save_file would keep everyone else from reading it.
        (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config)
        write_tokenizer(tokenizer, vocabulary, architecture.max_positions, folder)
    return notes, _next_steps(target, head)


def _with_defaults(checkpoint: Checkpoint) -> Namespace:
    """The options of the model, defaults filled in."""
    options = Namespace(**checkpoint.options)
    name = checkpoint.options.get("arch") or checkpoint.options.get("_name")
    require_roberta(name, checkpoint.path)
    ARCH_CONFIG_REGISTRY[name](options)
    return options


def _rows(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> int:
    """Of the embeddings."""
    name = f"{ENCODER}embed_tokens.weight"
    if name not in weights or weights[name].dim() != 2:
        raise UsageError(f"{checkpoint.path} has no matrix {name}: it is no RoBERTa")
    return len(weights[name])


def _architecture(weights: Mapping[str, Tensor], options: Namespace) -> Architecture:
    """Shapes and constants."""
    shapes = {
        name.removeprefix(ENCODER): tuple(tensor.shape)
        for name, tensor in weights.items()
        if name.startswith(ENCODER)
    }
    return Architecture.of_options(options, shapes)


def _common(vocab_size: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = next(iter(tensors.values())).dtype
    return {
        "vocab_size": vocab_size,
        "type_vocab_size": 1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(kind).removeprefix("torch."),
    }


def _prediction(
    checkpoint: Checkpoint, options: Namespace, architecture: Architecture, notes: list[str]
) -> dict[str, Any]:
    """The entries of ``config.json`` that say what the model predicts."""
    family = "RobertaPreLayerNorm" if architecture.prenorm else "Roberta"
    if checkpoint.head is None:
        if architecture.activation != "gelu":
            notes.append(
                "not carried over: the masked-LM head's activation, "
                f"{architecture.activation}: that of transformers "
                "has gelu, and predicts differently; the encoder is the same"
            )
        return {"architectures": [f"{family}ForMaskedLM"]}
    if options.pooler_activation_fn != "tanh":
        raise UsageError(
            f"{checkpoint.path} was trained with pooler_activation_fn="
            f"{options.pooler_activation_fn!s:.100}: transformers' head has tanh only"
        )
    notes.append("not carried over: the masked-LM head, which a classifier does not use")
    labels = _labels(checkpoint, notes)
    return {
        "architectures": [f"{family}ForSequenceClassification"],
        "problem_type": checkpoint.problem_class.problem_type,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _labels(checkpoint: Checkpoint, notes: list[str]) -> list[str]:
    record, classes = checkpoint.record, checkpoint.heads[checkpoint.head]
    if record is not None and record.problem.scale != 1:
        notes.append(
            "not carried over: the scale of the labels; multiply the output by "
            f"{record.problem.scale:g}"
        )
    labels = checkpoint.labels
    if labels is None:
        if checkpoint.problem_class.categorical:
            notes.append(
                "not carried over: the names of the labels, which --data would tell: they are "
                "LABEL_0, ..."
            )
        return [f"LABEL_{i}" for i in range(classes)]
    if len(labels) != classes:
        raise UsageError(f"{checkpoint.data} has {len(labels)} labels, the head {classes} classes")
    return list(labels)


def _template(checkpoint: Checkpoint, vocabulary: Vocabulary, notes: list[str]) -> Template:
    """What fairseq's task put around the texts; RoBERTa's ``<s> A </s></s> B </s>`` if unsaid."""
    symbols = vocabulary.dictionary.symbols

    def symbol(name: str, usual: int) -> str | None:
        index = checkpoint.symbol(name, usual, len(symbols))
        return None if index is None else symbols[index]

    template = Template(symbol("init_token", 0), symbol("separator_token", 2))
    if template.first is None:
        notes.append(
            "the checkpoint was trained without --init-token: the tokenizer puts no <s> in front"
        )
    return template


def _vocabulary(checkpoint: Checkpoint, rows: int) -> Vocabulary:
    """The vocabulary, which must fit the embeddings."""
    vocabulary = checkpoint.vocabulary
    size = len(vocabulary.dictionary) + ("<mask>" not in vocabulary.dictionary)
    if size != rows:
        raise UsageError(
            f"{checkpoint.path} has embeddings of {rows} symbols, "
            f"{vocabulary.folder / DICTIONARY} makes {size}: name the vocabulary that it was "
            "trained with by --vocabulary"
        )
    return vocabulary


def _next_steps(target: Path, head: str | None) -> str:
    kind = "AutoModelForMaskedLM" if head is None else "AutoModelForSequenceClassification"
    return "\n".join(
        [
            "In Python:",
            f"    from transformers import AutoTokenizer, {kind}",
            f'    tokenizer = AutoTokenizer.from_pretrained("{target}")',
            f'    model = {kind}.from_pretrained("{target}")',
        ]
    )
