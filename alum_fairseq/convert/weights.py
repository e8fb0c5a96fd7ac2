"""Tensors by the names of both sides, and what must be done to them on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alum_fairseq.convert.architecture import FIRST_POSITION, Architecture, Config
from alum_fairseq.convert.folder import Tensors
from alum_fairseq.errors import UsageError

ENCODER = "encoder.sentence_encoder."
LM_HEAD = "encoder.lm_head."
HEADS = "classification_heads."
# The head that fairseq's sentence_prediction makes unless told otherwise.
DEFAULT_HEAD = "sentence_classification_head"

# fairseq's special symbols; <mask> comes last, where its tasks put it.
PAD, UNKNOWN = 1, 3

# Modules, each with a weight and a bias: transformers' name, fairseq's name.
_ATTENTION = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
}
_POSTNORM = {"attention.output.LayerNorm": "self_attn_layer_norm"} | {
    "output.LayerNorm": "final_layer_norm"
}
_PRENORM = {"attention.LayerNorm": "self_attn_layer_norm"} | {
    "intermediate.LayerNorm": "final_layer_norm"
}

# The LM head: transformers' names of the dense layer, its normalisation, the bias and the output.
_LM_HEADS: Mapping[str, tuple[str, str, str, str]] = {
    "bert": tuple(
        f"cls.predictions.{name}"
        for name in ("transform.dense", "transform.LayerNorm", "bias", "decoder")
    ),
    "roberta": tuple(f"lm_head.{name}" for name in ("dense", "layer_norm", "bias", "decoder")),
}

# What BERT adds to the logits of rows that stand for <unk>: they are never predicted. Within the
# range of float16.
NEVER = -1e4


def module_names(architecture: Architecture) -> dict[str, str]:
    """The encoder's modules that have a weight and a bias: transformers' name, fairseq's name."""
    layer = _ATTENTION | (_PRENORM if architecture.prenorm else _POSTNORM)
    names = {"embeddings.LayerNorm": "layernorm_embedding"}
    if architecture.prenorm:
        names["LayerNorm"] = "layer_norm"
    for i in range(architecture.layers):
        names |= {f"encoder.layer.{i}.{hf}": f"layers.{i}.{ours}" for hf, ours in layer.items()}
    return names


# --------------------------------------------------------------------------------------- to fairseq


@dataclass
class Imported:
    """A model as fairseq has it.

    Attributes:
        weights: by fairseq's names.
        lost: what was not carried over, a sentence each.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def to_fairseq(
    tensors: Tensors, config: Config, architecture: Architecture, order: Sequence[int], rows: int
) -> Imported:
    """Carry a model's tensors over.

    Args:
        tensors: of the folder.
        config: its ``config.json``.
        architecture: read from it.
        order: the row of the embeddings of every symbol of fairseq, V.
        rows: of the embeddings.

    Raises:
        UsageError: a tensor is missing or has the wrong shape.
    """
    family = "bert" if config.values["model_type"] == "bert" else "roberta"
    prefix = _prefix(tensors)
    model = Imported()
    rest = _Rows(order)
    _embeddings(tensors, prefix, config, architecture, rest, rows, model)
    for hf, ours in module_names(architecture).items():
        shape = _shape(ours, architecture)
        _module(tensors, f"{prefix}{hf}", f"{ENCODER}{ours}", shape, model)
    model.weights[f"{ENCODER}version"] = torch.tensor([3.0])  # as fairseq's encoder has it
    _lm_head(tensors, family, architecture, rest, rows, model)
    _classification_head(tensors, family, prefix, config, architecture, model)
    model.lost += _leftovers(tensors.left)
    return model


class _Rows:
    """Picks rows by fairseq's order; a tensor that is in order already stays as it is."""

    def __init__(self, order: Sequence[int]) -> None:
        self._index = torch.tensor(order)

    def __call__(self, tensor: Tensor) -> Tensor:
        if torch.equal(self._index, torch.arange(len(tensor))):
            return tensor
        return tensor[self._index]


def _prefix(tensors: Tensors) -> str:
    """What stands before the names of the encoder: nothing, where it was saved alone."""
    for prefix in ("roberta.", "bert.", "roberta_prelayernorm."):
        if f"{prefix}embeddings.word_embeddings.weight" in tensors:
            return prefix
    return ""


def _shape(module: str, architecture: Architecture) -> tuple[int, ...]:
    """The shape of the weight of one of fairseq's modules."""
    width, ffn = architecture.width, architecture.ffn_width
    shapes = {"fc1": (ffn, width), "fc2": (width, ffn)}
    last = module.rsplit(".", 1)[-1]
    square = last == "dense" or last.endswith("_proj")
    return shapes.get(last, (width, width) if square else (width,))


def _module(
    tensors: Tensors, source: str, target: str, shape: tuple[int, ...], model: Imported
) -> None:
    model.weights[f"{target}.weight"] = tensors.take(f"{source}.weight", *shape)
    model.weights[f"{target}.bias"] = tensors.take(f"{source}.bias", shape[0])


def _embeddings(
    tensors: Tensors,
    prefix: str,
    config: Config,
    architecture: Architecture,
    in_order: _Rows,
    rows: int,
    model: Imported,
) -> None:
    width = architecture.width
    words = tensors.take(f"{prefix}embeddings.word_embeddings.weight", rows, width)
    positions = tensors.take(
        f"{prefix}embeddings.position_embeddings.weight",
        config.whole("max_position_embeddings"),
        width,
    )
    # fairseq counts positions from row 2; rows before it are padding's, or of no use.
    before = architecture.max_positions + FIRST_POSITION - len(positions)
    positions = torch.nn.functional.pad(positions, (0, 0, before, 0))
    segments = f"{prefix}embeddings.token_type_embeddings.weight"
    if segments in tensors:
        kinds = config.whole("type_vocab_size", 2, least=0)
        segment = tensors.take(segments, kinds, width)
        if kinds > 1:
            model.lost.append(
                f"the embeddings of {kinds - 1} of {kinds} segments: fairseq's RoBERTa has none; "
                "that of the first is part of the positions now"
            )
        if kinds and segment[0].any():
            positions[FIRST_POSITION:] += segment[0]
    for buffer in ("position_ids", "token_type_ids"):
        tensors.drop(f"{prefix}embeddings.{buffer}")
    model.weights[f"{ENCODER}embed_tokens.weight"] = in_order(words)
    model.weights[f"{ENCODER}embed_positions.weight"] = positions


def _lm_head(
    tensors: Tensors,
    family: str,
    architecture: Architecture,
    in_order: _Rows,
    rows: int,
    model: Imported,
) -> None:
    width = architecture.width
    embeddings = model.weights[f"{ENCODER}embed_tokens.weight"]
    dense, norm, bias, decoder = _LM_HEADS[family]
    if f"{dense}.weight" not in tensors:
        model.weights |= _new_lm_head(architecture, embeddings)
        model.lost.append("there is no masked-LM head to carry over: fairseq's was initialised")
        return
    _module(tensors, dense, f"{LM_HEAD}dense", (width, width), model)
    _module(tensors, norm, f"{LM_HEAD}layer_norm", (width,), model)
    # The output layer's own bias counts where it is not tied to the other one.
    own = f"{decoder}.bias"
    name = own if own in tensors and (bias not in tensors or not architecture.tied) else bias
    model.weights[f"{LM_HEAD}bias"] = in_order(tensors.take(name, rows))
    if architecture.tied:
        model.weights[f"{LM_HEAD}weight"] = embeddings
    else:
        output = tensors.take(f"{decoder}.weight", rows, width)
        model.weights[f"{LM_HEAD}weight"] = in_order(output)
    for copy in (bias, own, f"{decoder}.weight"):
        tensors.drop(copy)
    if family == "roberta" and architecture.activation != "gelu":
        model.lost.append(
            f"the masked-LM head's activation, gelu in transformers: fairseq's has that of the "
            f"layers, {architecture.activation}, and predicts differently"
        )


def _new_lm_head(architecture: Architecture, embeddings: Tensor) -> dict[str, Tensor]:
    """A masked-LM head as fairseq initialises it: normal with BERT's deviation of 0.02."""
    width = architecture.width
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) * 0.02
    head = {
        "dense.weight": drawn,
        "dense.bias": torch.zeros(width),
        "layer_norm.weight": torch.ones(width),
        "layer_norm.bias": torch.zeros(width),
        "bias": torch.zeros(len(embeddings)),
    }
    weights = {f"{LM_HEAD}{name}": tensor.to(embeddings) for name, tensor in head.items()}
    return weights | {f"{LM_HEAD}weight": embeddings if architecture.tied else embeddings.clone()}


def _classification_head(
    tensors: Tensors,
    family: str,
    prefix: str,
    config: Config,
    architecture: Architecture,
    model: Imported,
) -> None:
    kinds = config.values.get("architectures") or [""]
    if not str(kinds[0]).endswith("ForSequenceClassification"):
        return
    if family == "bert":
        dense, output = f"{prefix}pooler.dense", "classifier"
    else:
        dense, output = "classifier.dense", "classifier.out_proj"
    width = architecture.width
    _module(tensors, dense, f"{HEADS}{DEFAULT_HEAD}.dense", (width, width), model)
    shape = (number_of_labels(config), width)
    _module(tensors, output, f"{HEADS}{DEFAULT_HEAD}.out_proj", shape, model)
    if config.values.get("problem_type") == "multi_label_classification":
        model.lost.append(
            "that several labels may hold at once: fairseq's sentence_prediction takes the "
            "softmax of the head"
        )


def number_of_labels(config: Config) -> int:
    """The classes of a ``config.json``: transformers writes their names, or else has two."""
    labels = config.values.get("id2label")
    return len(labels) if isinstance(labels, dict) else config.whole("num_labels", 2)


_KNOWN_LEFTOVERS = {
    "pooler.": "the pooler, which only a classification head would use",
    "cls.seq_relationship.": "the head that predicts whether a sentence follows another",
}


def _leftovers(names: Sequence[str]) -> list[str]:
    """Sentences that name every tensor without a place."""
    lost: dict[str, int] = {}
    for name in names:
        known = (what for part, what in _KNOWN_LEFTOVERS.items() if part in name)
        what = next(known, f"tensors {name.rsplit('.', 1)[0]}.*")
        lost[what] = lost.get(what, 0) + 1
    return list(lost)


# ----------------------------------------------------------------------------------- from fairseq


def todays_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint of any age under the names that fairseq gives them today."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith("decoder."):
            name = f"en{name[2:]}"
        name = name.replace(".emb_layer_norm.", ".layernorm_embedding.")
        before, joined, kind = name.partition(".in_proj_")
        if joined:  # of 2019: the projections to queries, keys and values in one tensor
            if tensor.dim() == 0 or len(tensor) % 3:
                raise UsageError(f"the checkpoint's {name} is not made of three equal parts")
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{before}.{which}_proj.{kind}"] = part
        else:
            renamed[name] = tensor
    return renamed


def to_transformers(
    weights: Mapping[str, Tensor], architecture: Architecture, head: str | None, unknowns: int
) -> dict[str, Tensor]:
    """Carry the tensors of a fairseq checkpoint over.

    Args:
        weights: by fairseq's names of today.
        architecture: of the model.
        head: the classification head to carry over; None for the masked-LM head.
        unknowns: how many rows to add that stand for ``<unk>``.

    Raises:
        UsageError: a tensor is missing or has the wrong shape or type, or there is one that
            transformers has no place for.
    """
    left = dict(weights)
    width = architecture.width

    def take(name: str, *shape: int) -> Tensor:
        """A tensor of this shape, in which -1 stands for any size."""
        if name not in left:
            raise UsageError(f"the checkpoint has no tensor {name}")
        found = tuple(left[name].shape)
        if len(found) != len(shape) or any(
            wanted not in (-1, size) for size, wanted in zip(found, shape, strict=True)
        ):
            wanted = ", ".join("any" if size == -1 else str(size) for size in shape)
            raise UsageError(f"the checkpoint's {name} has shape {found}, not ({wanted})")
        if not left[name].is_floating_point():
            raise UsageError(f"the checkpoint's {name} is of type {left[name].dtype}, not floating")
        return left.pop(name)

    prefix = "roberta_prelayernorm." if architecture.prenorm else "roberta."
    words = take(f"{ENCODER}embed_tokens.weight", -1, width)
    positions = take(
        f"{ENCODER}embed_positions.weight", architecture.max_positions + FIRST_POSITION, width
    )
    carried = {
        f"{prefix}embeddings.word_embeddings.weight": _with_unknowns(words, unknowns),
        f"{prefix}embeddings.position_embeddings.weight": positions,
        f"{prefix}embeddings.token_type_embeddings.weight": words.new_zeros(1, width),
    }
    names = {f"{ENCODER}{ours}": f"{prefix}{hf}" for hf, ours in module_names(architecture).items()}
    if head is None:
        dense, norm, bias, decoder = _LM_HEADS["roberta"]
        names |= {f"{LM_HEAD}dense": dense, f"{LM_HEAD}layer_norm": norm}
        carried[bias] = _with_unknowns(take(f"{LM_HEAD}bias", len(words)), unknowns, NEVER)
        if not architecture.tied:
            output = take(f"{LM_HEAD}weight", len(words), width)
            carried[f"{decoder}.weight"] = _with_unknowns(output, unknowns)
            carried[f"{decoder}.bias"] = carried[bias].clone()
    else:
        names |= {
            f"{HEADS}{head}.dense": "classifier.dense",
            f"{HEADS}{head}.out_proj": "classifier.out_proj",
        }
    for ours, hf in names.items():
        classes = ours == f"{HEADS}{head}.out_proj"
        shape = (-1, width) if classes else _shape(ours, architecture)
        weight = take(f"{ours}.weight", *shape)
        carried |= {f"{hf}.weight": weight, f"{hf}.bias": take(f"{ours}.bias", len(weight))}
    foreign = [
        name for name in left if name.startswith(ENCODER) and not name.endswith((".version",))
    ]
    if foreign:
        raise UsageError(f"the checkpoint has {foreign[0]}, which RoBERTa of transformers lacks")
    return {name: tensor.contiguous() for name, tensor in carried.items()}


def _with_unknowns(rows: Tensor, count: int, value: float | None = None) -> Tensor:
    """The rows of symbols, followed by copies of that of ``<unk>``, or by a value."""
    if not count:
        return rows
    added = rows[UNKNOWN : UNKNOWN + 1].repeat(count, *[1] * (rows.dim() - 1))
    return torch.cat([rows, added if value is None else torch.full_like(added, value)])
