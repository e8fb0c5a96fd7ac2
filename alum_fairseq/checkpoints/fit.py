"""Whether what a checkpoint holds fits the model that is to take it."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fairseq.checkpoint_utils import prune_state_dict
from omegaconf import DictConfig
from torch import Tensor, nn

from alum_fairseq.checkpoints.reading import ENCODER, heads_of, settings_of, silent
from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.models.alum_roberta import FAIRSEQ_EPS

Shapes = dict[str, tuple[int, ...]]
_LAYER = re.compile(r"(?:.*sentence_encoder\.)?layers\.(\d+)\.")
FIRST_POSITION = 2  # fairseq's positions begin after the padding symbol's index, 1


def encoder_sizes(weights: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """The sizes of an encoder by its weights: fairseq's options, and the number of ``symbols``.

    Raises:
        UsageError: the weights hold no encoder of RoBERTa.
    """
    shapes = {
        name.partition("sentence_encoder.")[2] or name: weight.shape
        for name, weight in weights.items()
    }
    try:
        symbols, width = shapes["embed_tokens.weight"]
        return {
            "symbols": symbols,
            "encoder_layers": _depth(shapes),
            "encoder_embed_dim": width,
            "encoder_ffn_embed_dim": shapes["layers.0.fc1.weight"][0],
            "max_positions": shapes["embed_positions.weight"][0] - FIRST_POSITION,
        }
    except (KeyError, IndexError, ValueError):
        raise UsageError(f"{path} holds no encoder of RoBERTa") from None


def check_size(cfg: DictConfig, weights: Mapping[str, Tensor], path: Path) -> None:
    """Make sure that the options ask for no larger a model than the weights are.

    Numbers gone wrong would take all of the machine's memory before anything else is noticed.
    """
    found = encoder_sizes(weights, path)
    found["num_classes"] = max([1000, *heads_of(weights).values()])  # so many are harmless
    for group in (cfg.model, cfg.task):
        for name, size in found.items():
            asked = getattr(group, name, None)
            if isinstance(asked, int | float) and asked > size:
                raise UsageError(f"{path}: its {name} is {asked}, but its weights have {size}")


def _depth(names: Iterable[str]) -> int:
    """The number of layers that weights are of."""
    return len({match[1] for match in map(_LAYER.match, names) if match})


def is_as_deep(state: dict[str, Any], model: nn.Module) -> bool:
    """Whether a checkpoint, of today's names, has as many layers as a model."""
    return _depth(state["model"]) == _depth(model.state_dict())


def check_fits(
    state: dict[str, Any], model: nn.Module, path: Path, layers_to_keep: str | None = None
) -> None:
    """Make sure that the weights of a checkpoint are those of a model.

    Args:
        layers_to_keep: ``--encoder-layers-to-keep``, by which fairseq leaves out the others.

    Raises:
        UsageError: they are not; the message names what differs, and the remedy.
    """
    weights = dict(state["model"])
    try:
        # fairseq says it all once more when it loads the checkpoint.
        with silent("fairseq.models.roberta.model"), silent("fairseq.checkpoint_utils"):
            model.upgrade_state_dict_named(weights, "")
            keeping = Namespace(arch="roberta", encoder_layers_to_keep=layers_to_keep)
            weights = prune_state_dict(weights, keeping)
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
    except Exception as error:  # strangers' names and values, anywhere inside fairseq
        raise UsageError(f"{path} does not fit the model: {one_line(error)}") from None
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    options, _ = settings_of(state, path)
    _check_sizes(found, expected, path, options, getattr(model, "args", None))
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} has no place in the model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UsageError(
            f"{path} does not fit the model: {min(problems)}{more}. Choose the --arch and the "
            "options of the model that it was trained with"
        )


def _check_sizes(
    found: Shapes, expected: Shapes, path: Path, options: Mapping[str, Any], asked: Any
) -> None:
    """Where sizes of the whole model differ, say so, and name the options.

    Args:
        options: of the checkpoint's model.
        asked: the options of this one.
    """

    def differ(name: str, axis: int) -> tuple[int, int] | None:
        """The size of a weight in the checkpoint and in the model; None if they are equal."""
        shapes = found.get(name), expected.get(name)
        sizes = (shapes[0][axis], shapes[1][axis]) if all(shapes) else (0, 0)
        return sizes if sizes[0] != sizes[1] else None

    if sizes := differ(f"{ENCODER}embed_tokens.weight", 0):
        has, wanted = sizes
        why = " (one less: it has no <mask>)" if has == wanted - 1 else ""
        raise UsageError(
            f"{path} has a vocabulary of {has:,} symbols{why}, the data one of {wanted:,} "
            "(dict.txt, 4 special symbols and <mask>): make the data with the dict.txt that "
            "belongs to the checkpoint"
        )
    layers = _depth(found), _depth(expected)
    rows = [("{} layers", "--encoder-layers", *layers)] if layers[0] != layers[1] else []
    for what, option, name, axis, less in (
        ("{} positions", "--max-positions", "embed_positions.weight", 0, FIRST_POSITION),
        ("a width of {}", "--encoder-embed-dim", "embed_tokens.weight", -1, 0),
        ("an inner width of {}", "--encoder-ffn-embed-dim", "layers.0.fc1.bias", -1, 0),
    ):
        if sizes := differ(f"{ENCODER}{name}", axis):
            rows.append((what, option, sizes[0] - less, sizes[1] - less))
    # What the weights do not tell, and makes another function of them.
    for what, name, usual in (
        ("{} attention heads", "encoder_attention_heads", None),
        ("the activation {}", "activation_fn", None),
        ("a layer-normalisation epsilon of {}", "alum_layer_norm_eps", FAIRSEQ_EPS),
    ):
        has = options.get(name, usual)
        wanted = getattr(asked, name, usual)
        if has is not None and wanted is not None and has != wanted:
            option = f"--{name.replace('_', '-')}"
            rows.append((what, option.replace("--alum", "--arch alum_roberta --alum"), has, wanted))
    if rows:
        differences = "; ".join(
            f"{what.format(has)}, not {wanted}" for what, _, has, wanted in rows
        )
        remedy = " ".join(f"{option} {has}" for _, option, has, _ in rows)
        by_arch = any(option.startswith("--encoder") for _, option, *_ in rows)
        how = "choose its --arch, or" if by_arch else "give"
        raise UsageError(f"{path} does not fit the model: it has {differences}: {how} {remedy}")


def check_same_heads(state: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Raise a UsageError if a checkpoint to go on from has a head of another size than the model.

    Its optimizer belongs to that head. To start from its weights alone, a new head would do.
    """
    wanted = heads_of(model.state_dict())
    for name, outputs in heads_of(state["model"]).items():
        if wanted.get(name, outputs) != outputs:
            raise UsageError(
                f"{path} has a head of {outputs} classes, this run one of {wanted[name]}: it is "
                "another run's checkpoint, so give this one a --save-dir of its own"
            )


def check_resumable(state: dict[str, Any], path: Path) -> None:
    """Raise a UsageError if a checkpoint lacks what fairseq needs to start training from it."""
    history = state.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    extra = state.get("extra_state")
    if not (isinstance(last, dict) and "lr_scheduler_state" in last and extra) or not isinstance(
        extra, dict
    ):
        raise UsageError(
            f"{path} has weights, but not the 'optimizer_history' and 'extra_state' that fairseq "
            "needs to start training from it: take a checkpoint that fairseq-train or alum-convert "
            "wrote"
        )
