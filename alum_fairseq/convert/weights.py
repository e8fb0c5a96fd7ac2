"""Weights under transformers' names and under fairseq's, and the conversion of one to the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from fairseq.models.roberta.model import RobertaLMHead
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor

from alum_fairseq.checkpoints.fit import FIRST_POSITION
from alum_fairseq.checkpoints.reading import DEFAULT_HEAD, ENCODER, HEADS
from alum_fairseq.convert.architecture import Architecture, Config
from alum_fairseq.data.subwords import SPECIAL_TOKENS
from alum_fairseq.errors import UsageError
from alum_fairseq.models.token_head import TOKEN_HEAD

POSITIONS = f"{ENCODER}embed_positions.weight"
LM_HEAD = "encoder.lm_head."

# transformers' masked-LM heads: the prefix, and the names of the dense layer and its normalisation.
_LM_HEADS = {
    "bert": ("cls.predictions.", "transform.dense", "transform.LayerNorm"),
    "roberta": ("lm_head.", "dense", "layer_norm"),
}

WORDS = "embeddings.word_embeddings.weight"

# The bias of the logits of rows that stand for <unk>, so that they are never predicted. Within the
# range of float16.
NEVER = -1e4

# A module with a weight and a bias: its names in transformers and in fairseq, and the shape of the
# weight, where None stands for any size.
Module = tuple[str, str, tuple[int | None, ...]]
# fairseq's name of a head, and its outputs if known.
Head = tuple[str, int | None]

# What transformers calls the models that end in a head for every token, and its one layer.
TOKEN_HEADS = {"QuestionAnswering": "qa_outputs", "TokenClassification": "classifier"}


class Tensors(dict[str, Tensor]):
    """The tensors of a model by name, taken out one by one; whatever remains was not converted."""

    def __init__(self, tensors: Mapping[str, Tensor], source: object) -> None:
        super().__init__(tensors)
        self._source = source

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Remove and return a tensor of this shape, in which None stands for any size.

        Raises:
            UsageError: it is missing, has another shape, or is not of a floating-point type.
        """
        if name not in self:
            raise UsageError(f"{self._source} has no tensor {name}")
        tensor = self.pop(name)
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(
            size not in (None, actual) for size, actual in zip(shape, found, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise UsageError(
                f"{self._source}: {name} has shape {found}, not ({wanted}), as its configuration "
                "implies"
            )
        if not tensor.is_floating_point():
            raise UsageError(
                f"{self._source}: {name} is of type {tensor.dtype}, not floating-point"
            )
        return tensor

    def take_module(
        self, source: str, target: str, shape: tuple[int | None, ...]
    ) -> dict[str, Tensor]:
        """A module's weight, of this shape, and its bias, under another name."""
        weight = self.take(f"{source}.weight", *shape)
        bias = self.take(f"{source}.bias", len(weight))
        return {f"{target}.weight": weight, f"{target}.bias": bias}


def _modules(
    architecture: Architecture,
    family: str,
    prefix: str,
    lm_head: bool,
    head: Head | None,
    model: str = "SequenceClassification",
) -> list[Module]:
    """The modules of a model, but for its embeddings; ``prefix`` is that of transformers' names."""
    width, ffn_width = architecture.encoder_embed_dim, architecture.encoder_ffn_embed_dim
    square, norm = (width, width), (width,)
    prenorm = architecture.encoder_normalize_before
    layer: list[Module] = [
        ("attention.self.query", "self_attn.q_proj", square),
        ("attention.self.key", "self_attn.k_proj", square),
        ("attention.self.value", "self_attn.v_proj", square),
        ("attention.output.dense", "self_attn.out_proj", square),
        (f"attention{'' if prenorm else '.output'}.LayerNorm", "self_attn_layer_norm", norm),
        ("intermediate.dense", "fc1", (ffn_width, width)),
        ("output.dense", "fc2", (width, ffn_width)),
        (f"{'intermediate' if prenorm else 'output'}.LayerNorm", "final_layer_norm", norm),
    ]
    encoder: list[Module] = [("embeddings.LayerNorm", "layernorm_embedding", norm)]
    encoder += [("LayerNorm", "layer_norm", norm)] if prenorm else []
    encoder += [
        (f"encoder.layer.{i}.{hf}", f"layers.{i}.{ours}", shape)
        for i in range(architecture.encoder_layers)
        for hf, ours, shape in layer
    ]
    modules = [(f"{prefix}{hf}", f"{ENCODER}{ours}", shape) for hf, ours, shape in encoder]
    if lm_head:
        before, dense, layer_norm = _LM_HEADS[family]
        modules.append((f"{before}{dense}", f"{LM_HEAD}dense", square))
        modules.append((f"{before}{layer_norm}", f"{LM_HEAD}layer_norm", norm))
    if model in TOKEN_HEADS and head is not None:
        modules.append((TOKEN_HEADS[model], TOKEN_HEAD, (head[1], width)))
    elif head is not None:
        name, classes = head
        pooled = family == "bert" or model == "MultipleChoice"
        dense = f"{prefix}pooler.dense" if pooled else "classifier.dense"
        output = "classifier" if pooled else "classifier.out_proj"
        modules.append((dense, f"{HEADS}{name}.dense", square))
        modules.append((output, f"{HEADS}{name}.out_proj", (classes, width)))
    return modules


# --------------------------------------------------------------------------------------- to fairseq


def to_fairseq(
    tensors: Tensors, config: Config, architecture: Architecture, order: Sequence[int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a transformers model's tensors; ``order`` has the row of each of fairseq's symbols.

    Returns:
        The weights under fairseq's names, and a phrase for each thing that was not converted.

    Raises:
        UsageError: a tensor is missing or has the wrong shape.
    """
    family = "bert" if config.values["model_type"] == "bert" else "roberta"
    prefix = encoder_prefix(tensors)
    width, rows = architecture.encoder_embed_dim, config.integer("vocab_size")
    lost: list[str] = []

    def by_symbol(name: str, *shape: int) -> Tensor:
        tensor = tensors.take(name, rows, *shape)
        return tensor if list(order) == list(range(rows)) else tensor[torch.tensor(order)]

    words = by_symbol(f"{prefix}{WORDS}", width)
    weights = {
        f"{ENCODER}embed_tokens.weight": words,
        POSITIONS: _positions(tensors, prefix, config, architecture, lost),
        f"{ENCODER}version": torch.tensor([3.0]),  # as fairseq's encoder has it
    }
    before, dense, _ = _LM_HEADS[family]
    lm_head, head = f"{before}{dense}.weight" in tensors, None
    if lm_head:
        weights |= _lm_head_output(tensors, before, architecture, words, by_symbol)
        if family == "roberta" and architecture.activation_fn != "gelu":
            lost.append(
                "the masked-LM head's activation: it is gelu in transformers, but that of the "
                f"layers, {architecture.activation_fn}, in fairseq, whose predictions differ"
            )
    else:
        weights |= _new_lm_head(architecture, words)
        lost.append("there is no masked-LM head to carry over: fairseq's was initialised")
    kind = kind_of(config)
    if kind in TOKEN_HEADS:
        head = (TOKEN_HEAD, number_of_labels(config))
    if kind == "MultipleChoice":  # a score for each choice
        head = (DEFAULT_HEAD, 1)
    if kind == "SequenceClassification":
        head = (DEFAULT_HEAD, number_of_labels(config))
        if config.values.get("problem_type") == "multi_label_classification":
            lost.append(
                "that an example may have several labels: fairseq's sentence_prediction applies "
                "a softmax to the head's output"
            )
    for hf, ours, shape in _modules(architecture, family, prefix, lm_head, head, kind):
        weights |= tensors.take_module(hf, ours, shape)
    return weights, [*lost, *_unconverted(sorted(tensors))]


def _lm_head_output(
    tensors: Tensors,
    head: str,
    architecture: Architecture,
    words: Tensor,
    by_symbol: Callable[..., Tensor],
) -> dict[str, Tensor]:
    """The weight and the bias of the masked-LM head's logits."""
    tied = not architecture.untie_weights_roberta
    bias, own, output = f"{head}bias", f"{head}decoder.bias", f"{head}decoder.weight"
    # The output layer's own bias matters only if it is not tied to the head's.
    weights = {
        f"{LM_HEAD}bias": by_symbol(
            own if own in tensors and (bias not in tensors or not tied) else bias
        ),
        f"{LM_HEAD}weight": words if tied else by_symbol(output, words.shape[1]),
    }
    for name in (bias, own, output):
        tensors.pop(name, None)
    return weights


def encoder_prefix(tensors: Tensors) -> str:
    """The prefix of the encoder's names; empty if the encoder was saved by itself."""
    prefixes = ("roberta.", "bert.", "roberta_prelayernorm.")
    return next((prefix for prefix in prefixes if f"{prefix}{WORDS}" in tensors), "")


def _positions(
    tensors: Tensors, prefix: str, config: Config, architecture: Architecture, lost: list[str]
) -> Tensor:
    """Position embeddings, with the embedding of the first segment added."""
    width, rows = architecture.encoder_embed_dim, config.integer("max_position_embeddings")
    positions = tensors.take(f"{prefix}embeddings.position_embeddings.weight", rows, width)
    # fairseq's positions start at row 2; the rows before are unused.
    missing = architecture.max_positions + FIRST_POSITION - rows
    positions = torch.nn.functional.pad(positions, (0, 0, missing, 0))
    name = f"{prefix}embeddings.token_type_embeddings.weight"
    if name in tensors:
        count = config.integer("type_vocab_size", 2, minimum=0)
        segments = tensors.take(name, count, width)
        if count > 1:
            lost.append(
                f"the embeddings of {count - 1} of {count} segments: fairseq's RoBERTa has none; "
                "that of the first is part of the positions now"
            )
        if count and segments[0].any():
            positions = positions.float()  # in half precision the sum would be another
            positions[FIRST_POSITION:] += segments[0]
    for name in ("position_ids", "token_type_ids"):
        tensors.pop(f"{prefix}embeddings.{name}", None)
    return positions


def _new_lm_head(architecture: Architecture, words: Tensor) -> dict[str, Tensor]:
    """fairseq's masked-LM head, newly initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = RobertaLMHead(words.shape[1], len(words), architecture.activation_fn, words)
        head.apply(init_bert_params)
    weights = {f"{LM_HEAD}{name}": tensor.to(words) for name, tensor in head.state_dict().items()}
    output = words.clone() if architecture.untie_weights_roberta else words
    return weights | {f"{LM_HEAD}weight": output}


def kind_of(config: Config) -> str:
    """What the model is for, as transformers calls it: ``MaskedLM``, ``QuestionAnswering``, ..."""
    return str((config.values.get("architectures") or [""])[0]).rpartition("For")[2]


def number_of_labels(config: Config) -> int:
    """The number of classes; transformers writes their names, or else there are two."""
    labels = config.values.get("id2label")
    return len(labels) if isinstance(labels, dict) else config.integer("num_labels", 2)


_KNOWN_REMAINDERS = {
    "pooler.": "the pooler, which only a classification head would use",
    "cls.seq_relationship.": "the head that predicts whether a sentence follows another",
}


def _unconverted(names: Sequence[str]) -> dict[str, None]:
    """A phrase for each module that was not converted."""
    phrases = {name: f"tensors {name.rsplit('.', 1)[0]}.*" for name in names}
    for part, phrase in _KNOWN_REMAINDERS.items():
        phrases |= {name: phrase for name in names if part in name}
    return dict.fromkeys(phrases.values())


# ----------------------------------------------------------------------------------- from fairseq


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint of any age, under the names that fairseq uses now."""
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
    tensors: Tensors, architecture: Architecture, head: str | None, kind: str, unknowns: int
) -> dict[str, Tensor]:
    """Convert the weights of a fairseq checkpoint to transformers' tensors.

    Args:
        tensors: under fairseq's current names.
        architecture: of the model.
        head: the head to convert; None for the masked-LM head.
        kind: what transformers calls the model, as :func:`kind_of`.
        unknowns: number of rows to add for tokens that are ``<unk>`` to fairseq.

    Raises:
        UsageError: a tensor is missing, has the wrong shape or type, or has no counterpart in
            transformers.
    """
    width = architecture.encoder_embed_dim
    prefix = "roberta_prelayernorm." if architecture.encoder_normalize_before else "roberta."
    words = tensors.take(f"{ENCODER}embed_tokens.weight", None, width)
    rows = architecture.max_positions + FIRST_POSITION
    positions = tensors.take(POSITIONS, rows, width)
    converted = {
        f"{prefix}{WORDS}": _with_unknowns(words, unknowns),
        f"{prefix}embeddings.position_embeddings.weight": positions,
        f"{prefix}embeddings.token_type_embeddings.weight": words.new_zeros(1, width),
    }
    if head is None:
        bias = _with_unknowns(tensors.take(f"{LM_HEAD}bias", len(words)), unknowns, NEVER)
        converted["lm_head.bias"] = bias
        if architecture.untie_weights_roberta:
            output = tensors.take(f"{LM_HEAD}weight", len(words), width)
            converted["lm_head.decoder.weight"] = _with_unknowns(output, unknowns)
            converted["lm_head.decoder.bias"] = bias.clone()
    classifier = None if head is None else (head, None)
    for hf, ours, shape in _modules(
        architecture, "roberta", prefix, head is None, classifier, kind
    ):
        converted |= tensors.take_module(ours, hf, shape)
    for name in sorted(tensors):
        if name.startswith(ENCODER) and not name.endswith(".version"):
            raise UsageError(f"the checkpoint has {name}, which RoBERTa in transformers lacks")
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def _with_unknowns(rows: Tensor, count: int, value: float | None = None) -> Tensor:
    """The rows, followed by ``count`` copies of the row of ``<unk>``, or of a value."""
    if not count:
        return rows
    unknown = rows[SPECIAL_TOKENS.index("<unk>")]
    added = unknown.expand(count, *unknown.shape)
    return torch.cat([rows, added if value is None else torch.full_like(added, value)])
