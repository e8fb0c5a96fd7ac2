"""``alum-convert to-hf``: a checkpoint of fairseq becomes a folder of transformers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from safetensors.torch import save

from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.checkpoints.fit import encoder_sizes
from alum_fairseq.checkpoints.model import require_roberta
from alum_fairseq.convert.architecture import Architecture
from alum_fairseq.convert.folder import CONFIG, WEIGHTS, write_json
from alum_fairseq.convert.same_ids import differing, ids_of, note_of, texts_of
from alum_fairseq.convert.weights import POSITIONS, Tensors, current_names, to_transformers
from alum_fairseq.convert.write_tokenizer import make_tokenizer, write_tokenizer
from alum_fairseq.data.subwords import SPECIAL_TOKENS
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import whole_folder
from alum_fairseq.problems import MultipleChoice, SequenceTagging, SpanPrediction, TokenProblem

# What transformers calls the models of our problems.
_KINDS = {
    SpanPrediction: "QuestionAnswering",
    SequenceTagging: "TokenClassification",
    MultipleChoice: "MultipleChoice",
}
_NEXT_STEPS = (
    "In Python:\n"
    "    from transformers import AutoTokenizer, AutoModelFor{head}\n"
    '    tokenizer = AutoTokenizer.from_pretrained("{target}")\n'
    '    model = AutoModelFor{head}.from_pretrained("{target}")'
)
_CHOICES = (
    "\n    # each choice comes before the context:\n"
    '    batch = tokenizer(choices, [context] * len(choices), padding=True, return_tensors="pt")\n'
    "    model(**{name: rows[None] for name, rows in batch.items()}).logits"
)


def convert(checkpoint: Checkpoint, target: Path) -> tuple[list[str], str]:
    """Convert a checkpoint, with or without a head, to a folder to make.

    Returns:
        Notes, such as on what was not converted; and how to load the result.

    Raises:
        UsageError: the checkpoint is broken, or transformers has no such model.
    """
    weights = current_names(checkpoint.weights)
    options = Namespace(**checkpoint.options)
    arch = checkpoint.options.get("arch") or checkpoint.options.get("_name")
    require_roberta(arch, checkpoint.path)
    ARCH_CONFIG_REGISTRY[arch](options)  # fills defaults in
    head = checkpoint.head
    sizes = encoder_sizes(weights, checkpoint.path)
    rows = sizes.pop("symbols")
    architecture = Architecture.of_options(options, sizes)
    vocabulary = _vocabulary(checkpoint, rows)
    notes: list[str] = []
    # What fairseq's task put around the texts; RoBERTa's <s> A </s></s> B </s> if unsaid.
    first = checkpoint.symbol("init_token", 0, len(vocabulary.dictionary))
    separator = checkpoint.symbol("separator_token", 2, len(vocabulary.dictionary))
    if first is None:
        notes.append(
            "the checkpoint was trained without --init-token: the tokenizer puts no <s> in front"
        )
    tokenizer, unknowns = make_tokenizer(vocabulary, first, separator)
    texts = texts_of(tokenizer, map(tokenizer.token_to_id, SPECIAL_TOKENS))
    same = {i: i for i in range(rows)}
    wrong = differing(vocabulary, texts, ids_of(tokenizer, texts), same)
    notes += note_of(wrong, texts, vocabulary.folder)
    vocab_size = rows + unknowns
    if unknowns:
        notes.append(
            f"{unknowns} subwords are not in {DICTIONARY}, and <unk> to fairseq: they have ids "
            f"from {rows} to {vocab_size - 1}, whose rows are copies of that of <unk>"
        )
    kind = _kind(checkpoint)
    tensors = Tensors(weights, checkpoint.path)
    tensors = to_transformers(tensors, architecture, head, kind, unknowns)
    config = {
        **_config(checkpoint, options, architecture, notes),
        "vocab_size": vocab_size,
        # from-hf may have made the positions more precise than the rest.
        "torch_dtype": str(weights[POSITIONS].dtype).removeprefix("torch."),
    }
    with whole_folder(target) as folder:
        # save_file would keep everyone else from reading it.
        (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config)
        write_tokenizer(tokenizer, vocabulary, architecture.max_positions, folder)
    steps = _NEXT_STEPS.format(target=target, head=kind)
    return notes, steps + (_CHOICES if checkpoint.problem_class is MultipleChoice else "")


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.head is None:
        return "MaskedLM"
    return _KINDS.get(checkpoint.problem_class, "SequenceClassification")


def _config(
    checkpoint: Checkpoint, options: Namespace, architecture: Architecture, notes: list[str]
) -> dict[str, Any]:
    """The entries of ``config.json``, but for those of the embeddings."""
    has_head = checkpoint.head is not None
    family = "RobertaPreLayerNorm" if architecture.encoder_normalize_before else "Roberta"
    config = {
        **architecture.config,
        "architectures": [f"{family}For{_kind(checkpoint)}"],
        "type_vocab_size": 1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    if not has_head:
        if architecture.activation_fn != "gelu":
            notes.append(
                "not carried over: the masked-LM head's activation, "
                f"{architecture.activation_fn}: that of transformers "
                "has gelu, and predicts differently; the encoder is the same"
            )
        return config
    of_tokens = issubclass(checkpoint.problem_class, TokenProblem)
    if not of_tokens and options.pooler_activation_fn != "tanh":
        raise UsageError(
            f"{checkpoint.path} was trained with pooler_activation_fn="
            f"{options.pooler_activation_fn!s:.100}: transformers' head has tanh only"
        )
    notes.append("not carried over: the masked-LM head, which a classifier does not use")
    unnamed = checkpoint.problem_class is MultipleChoice and checkpoint.labels is None
    if unnamed or checkpoint.problem_class is SpanPrediction:
        return config
    labels = _labels(checkpoint, notes)
    if checkpoint.problem_class not in _KINDS:
        config["problem_type"] = checkpoint.problem_class.problem_type
    return config | {
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
    return list(checkpoint.problem.labels)  # or it says which of the two is wrong


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
