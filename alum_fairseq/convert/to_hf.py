"""``alum-convert to-hf``: a checkpoint of fairseq becomes a folder of transformers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from safetensors.torch import save
from torch import Tensor

from alum_fairseq.checkpoints.reading import load_state, require_roberta, require_symbol
from alum_fairseq.convert.architecture import Architecture
from alum_fairseq.convert.folder import CONFIG, WEIGHTS, write_json
from alum_fairseq.convert.weights import ENCODER, HEADS, Tensors, current_names, to_transformers
from alum_fairseq.convert.write_tokenizer import Template, make_tokenizer, write_tokenizer
from alum_fairseq.data.record import RECORD, VOCABULARY, DataRecord
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary, load_dictionary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_folder, whole_folder


@dataclass(frozen=True)
class Sources:
    """Where to find what a checkpoint does not hold; None: where it was trained with.

    Attributes:
        data: the folder of the data that it was trained on.
        vocabulary: the folder of ``dict.txt`` and the subwords.
        head: the classification head to take, of several.
    """

    data: Path | None = None
    vocabulary: Path | None = None
    head: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of RoBERTa.

    Attributes:
        path: where it was read.
        weights: under fairseq's current names.
        options: of the model, defaults filled in.
        settings: what task and criterion were told.
    """

    path: Path
    weights: dict[str, Tensor]
    options: Namespace
    settings: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a file.

        Raises:
            UsageError: it is no checkpoint, or not of RoBERTa.
        """
        state = load_state(path)
        args, cfg = state.get("args"), state.get("cfg")
        if isinstance(args, Namespace):
            settings = options = vars(args)
        elif isinstance(cfg, dict):
            options = _entries(cfg.get("model"))
            settings = {**_entries(cfg.get("task")), **_entries(cfg.get("criterion"))}
        else:
            raise UsageError(f"{path} says nothing of how it was trained: it has no args or cfg")
        return cls(path, current_names(state["model"]), _with_defaults(path, options), settings)

    @property
    def heads(self) -> list[str]:
        """Names of the classification heads."""
        return sorted({n.split(".")[1] for n in self.weights if n.startswith(HEADS)})

    @property
    def rows(self) -> int:
        """Of the embeddings."""
        name = f"{ENCODER}embed_tokens.weight"
        if name not in self.weights or self.weights[name].dim() != 2:
            raise UsageError(f"{self.path} has no matrix {name}: it is no RoBERTa")
        return len(self.weights[name])

    @property
    def architecture(self) -> Architecture:
        """Shapes and constants."""
        shapes = {
            name.removeprefix(ENCODER): tuple(tensor.shape)
            for name, tensor in self.weights.items()
            if name.startswith(ENCODER)
        }
        return Architecture.of_options(self.options, shapes)

    def head(self, name: str | None) -> str | None:
        """The head to convert: the one that was asked for, the one that there is, or none."""
        if name is None and len(self.heads) <= 1:
            return self.heads[0] if self.heads else None
        if name not in self.heads:
            asked = "several classification heads" if name is None else f"no head {name!r}"
            known = ", ".join(self.heads) or "none"
            raise UsageError(f"{self.path} has {asked}: choose one with --head. It has {known}")
        return name


def _entries(group: Any) -> dict[str, Any]:
    if isinstance(group, Namespace):
        return vars(group)
    return group if isinstance(group, dict) else {}


def _with_defaults(path: Path, given: Mapping[str, Any]) -> Namespace:
    options = Namespace(**given)
    name = given.get("arch") or given.get("_name")
    require_roberta(name, path)
    ARCH_CONFIG_REGISTRY[name](options)
    return options


# ------------------------------------------------------------------------------------- conversion


def convert(path: Path, target: Path, sources: Sources) -> tuple[list[str], str]:
    """Convert a checkpoint.

    Args:
        path: of the checkpoint.
        target: the folder to make.
        sources: of what the checkpoint does not hold.

    Returns:
        What was not carried over, or is otherwise worth knowing; and how to go on.

    Raises:
        UsageError: the checkpoint is broken, or transformers has no such model.
    """
    checkpoint = Checkpoint.read(path)
    head = checkpoint.head(sources.head)
    architecture = checkpoint.architecture
    data = _data(checkpoint, sources)
    vocabulary = _vocabulary(checkpoint, sources, data)
    notes: list[str] = []
    tokenizer, unknowns = make_tokenizer(vocabulary, _template(checkpoint, vocabulary, notes))
    if unknowns:
        rows = checkpoint.rows
        notes.append(
            f"{unknowns} subwords are not in {DICTIONARY}, and <unk> to fairseq: they have ids "
            f"from {rows} to {rows + unknowns - 1}, whose rows are copies of that of <unk>"
        )
    weights = Tensors(checkpoint.weights, path)
    tensors = to_transformers(weights, architecture, head, unknowns)
    config = architecture.config | _common(checkpoint.rows + unknowns, tensors)
    config |= _prediction(checkpoint, head, data, architecture, notes)
    with whole_folder(target) as folder:
        # save_file would keep everyone else from reading it.
        (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config)
        write_tokenizer(tokenizer, vocabulary, architecture.max_positions, folder)
    return notes, _next_steps(target, head)


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
    checkpoint: Checkpoint,
    head: str | None,
    data: Path | None,
    architecture: Architecture,
    notes: list[str],
) -> dict[str, Any]:
    """The entries of ``config.json`` that say what the model predicts."""
    family = "RobertaPreLayerNorm" if architecture.prenorm else "Roberta"
    if head is None:
        if architecture.activation != "gelu":
            notes.append(
                "not carried over: the masked-LM head's activation, "
                f"{architecture.activation}: that of transformers "
                "has gelu, and predicts differently; the encoder is the same"
            )
        return {"architectures": [f"{family}ForMaskedLM"]}
    if checkpoint.options.pooler_activation_fn != "tanh":
        raise UsageError(
            f"{checkpoint.path} was trained with pooler_activation_fn="
            f"{checkpoint.options.pooler_activation_fn!s:.100}: transformers' head has tanh only"
        )
    notes.append("not carried over: the masked-LM head, which a classifier does not use")
    classes = checkpoint.weights[f"{HEADS}{head}.out_proj.weight"].shape[0]
    regression = bool(checkpoint.settings.get("regression_target"))
    labels = _labels(data, classes, regression, notes)
    return {
        "architectures": [f"{family}ForSequenceClassification"],
        "problem_type": "regression" if regression else "single_label_classification",
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _labels(data: Path | None, classes: int, regression: bool, notes: list[str]) -> list[str]:
    record = DataRecord.load(data) if data and (data / RECORD).is_file() else None
    if record and record.scale != 1:
        notes.append(
            f"not carried over: the scale of the labels; multiply the output by {record.scale:g}"
        )
    numbered = [f"LABEL_{i}" for i in range(classes)]
    if regression:
        return numbered
    if record and record.labels:
        labels = record.labels
    elif data and (data / "label" / DICTIONARY).is_file():
        dictionary = load_dictionary(data / "label")
        labels = dictionary.symbols[dictionary.nspecial :][:classes]
    else:
        notes.append(
            "not carried over: the names of the labels, which --data would tell: they are "
            "LABEL_0, ..."
        )
        return numbered
    if len(labels) != classes:
        raise UsageError(f"{data} has {len(labels)} labels, the head {classes} classes")
    return labels


def _template(checkpoint: Checkpoint, vocabulary: Vocabulary, notes: list[str]) -> Template:
    """What fairseq's task put around the texts; RoBERTa's ``<s> A </s></s> B </s>`` if unsaid."""
    settings = checkpoint.settings
    if "init_token" not in settings:
        return Template()
    symbols = vocabulary.dictionary.symbols

    def symbol(name: str) -> str | None:
        index = settings.get(name)
        require_symbol(index, name, len(symbols), checkpoint.path)
        return None if index is None else symbols[index]

    template = Template(symbol("init_token"), symbol("separator_token"))
    if template.first is None:
        notes.append(
            "the checkpoint was trained without --init-token: the tokenizer puts no <s> in front"
        )
    return template


# ------------------------------------------------------------------------- data and vocabulary


def _data(checkpoint: Checkpoint, sources: Sources) -> Path | None:
    """The folder of the data: the one named, or that of the training, or the checkpoint's own."""
    if sources.data is not None:
        return existing_folder(sources.data)
    trained = str(checkpoint.settings.get("data") or "").split(":")[0]
    if trained not in ("", ".") and Path(trained).is_dir():
        return Path(trained)
    own = checkpoint.path.parent
    return own if (own / DICTIONARY).is_file() else None


def _vocabulary(checkpoint: Checkpoint, sources: Sources, data: Path | None) -> Vocabulary:
    """The vocabulary, which must fit the embeddings."""
    if sources.vocabulary is not None:
        vocabulary = Vocabulary.load(sources.vocabulary)
    else:
        vocabulary = _vocabulary_of_data(data)
    size = len(vocabulary.dictionary) + ("<mask>" not in vocabulary.dictionary)
    if size != checkpoint.rows:
        raise UsageError(
            f"{checkpoint.path} has embeddings of {checkpoint.rows} symbols, "
            f"{vocabulary.folder / DICTIONARY} makes {size}: name the vocabulary that it was "
            "trained with by --vocabulary"
        )
    return vocabulary


def _vocabulary_of_data(data: Path | None) -> Vocabulary:
    if data is None:
        raise UsageError(
            "the data that the checkpoint was trained on are gone: name them with --data, or "
            "a folder of dict.txt and the files of its subwords with --vocabulary"
        )
    if (data / VOCABULARY / DICTIONARY).is_file():  # alum-prepare's
        return Vocabulary.load(data / VOCABULARY)
    if (data / DICTIONARY).is_file():
        vocabulary = Vocabulary.load(data)
        if vocabulary.bpe != "none":
            return vocabulary
    raise UsageError(
        f"{data} does not say how its text was cut into symbols: name with --vocabulary a folder "
        "that holds dict.txt and the files of its subwords (encoder.json and vocab.bpe, "
        "sentencepiece.bpe.model or tokenizer.json; dict.txt alone where symbols are words)"
    )


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
