"""Whether what a checkpoint holds fits the model that is to take it."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq.checkpoint_utils import prune_state_dict
from omegaconf import DictConfig
from torch import Tensor, nn

from alum_fairseq.checkpoints.reading import heads_of, silent
from alum_fairseq.errors import UsageError, one_line


def check_size(cfg: DictConfig, weights: Mapping[str, Tensor], path: Path) -> None:
    """Make sure that the options ask for no larger a model than the weights are.

    Numbers gone wrong would take all of the machine's memory before anything else is noticed.
    """
    shapes = {
        name.partition("sentence_encoder.")[2] or name: weight.shape
        for name, weight in weights.items()
    }
    try:
        found = {
            "encoder_layers": len(set(_numbers_of_layers(shapes))),
            "encoder_embed_dim": shapes["embed_tokens.weight"][1],
            "encoder_ffn_embed_dim": shapes["layers.0.fc1.weight"][0],
            "max_positions": shapes["embed_positions.weight"][0] - 2,
            "num_classes": max([1000, *heads_of(weights).values()]),  # so many are harmless
        }
    except (KeyError, IndexError, TypeError):
        raise UsageError(f"{path} holds no encoder of RoBERTa") from None
    for group in (cfg.model, cfg.task):
        for name, size in found.items():
            asked = getattr(group, name, None)
            if isinstance(asked, int | float) and asked > size:
                raise UsageError(f"{path}: its {name} is {asked}, but its weights have {size}")


def _numbers_of_layers(names: Iterable[str]) -> Iterator[int]:
    for name in names:
        match = re.match(r"layers\.(\d+)\.", name)
        if match:
            yield int(match[1])


def check_fits(
    state: dict[str, Any], model: nn.Module, path: Path, layers_to_keep: str | None = None
) -> None:
    """Make sure that the weights of a checkpoint are those of a model.

    Args:
        state: what :func:`load_state` read.
        model: a model of fairseq, built for the data and the options at hand.
        path: where the state came from, for the message.
        layers_to_keep: ``--encoder-layers-to-keep``, by which fairseq leaves out the others.

    Raises:
        UsageError: they are not; the message names what differs, and the remedy.
    """
    try:
        found = upgraded_shapes(state, model, layers_to_keep)
    except Exception as error:  # strangers' names and values, anywhere inside fairseq
        raise UsageError(f"{path} does not fit the model: {one_line(error)}") from None
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for check in (_check_vocabulary, _check_depth, _check_positions, _check_width):
        check(found, expected, path)
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


def check_resumable(state: dict[str, Any], path: Path) -> None:
    """Make sure that fairseq can start training from a checkpoint.

    Raises:
        UsageError: it lacks what fairseq reads beside the weights.
    """
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


def upgraded_shapes(
    state: dict[str, Any], model: nn.Module, layers_to_keep: str | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's weights, under the names that the model has for them today."""
    weights = dict(state["model"])
    # fairseq says it all once more when it loads the checkpoint.
    with silent("fairseq.models.roberta.model"), silent("fairseq.checkpoint_utils"):
        model.upgrade_state_dict_named(weights, "")
        keeping = Namespace(arch="roberta", encoder_layers_to_keep=layers_to_keep)
        weights = prune_state_dict(weights, keeping)
    return {name: tuple(weight.shape) for name, weight in weights.items()}


_ENCODER = "encoder.sentence_encoder."
Shapes = dict[str, tuple[int, ...]]


def _sizes_that_differ(
    found: Shapes, expected: Shapes, name: str, axis: int
) -> tuple[int, int] | None:
    """The size of a weight that both have, in the checkpoint and in the model; None if equal."""
    shapes = found.get(name, ()), expected.get(name, ())
    if not all(shapes) or shapes[0][axis] == shapes[1][axis]:
        return None
    return shapes[0][axis], shapes[1][axis]


def _check_vocabulary(found: Shapes, expected: Shapes, path: Path) -> None:
    sizes = _sizes_that_differ(found, expected, f"{_ENCODER}embed_tokens.weight", 0)
    if sizes is None:
        return
    has, wanted = sizes
    why = " (one less: it has no <mask>)" if has == wanted - 1 else ""
    raise UsageError(
        f"{path} has a vocabulary of {has:,} symbols{why}, the data one of {wanted:,} (dict.txt, "
        "4 special symbols and <mask>): make the data with the dict.txt that belongs to the "
        "checkpoint"
    )


def _depth(names: Iterable[str]) -> int:
    layer = re.compile(re.escape(_ENCODER) + r"layers\.(\d+)\.")
    return len({match[1] for match in map(layer.match, names) if match})


def is_as_deep(state: dict[str, Any], model: nn.Module) -> bool:
    """Whether a checkpoint, of today's names, has as many layers as a model."""
    return _depth(state["model"]) == _depth(model.state_dict())


def _check_depth(found: Shapes, expected: Shapes, path: Path) -> None:
    has, wanted = _depth(found), _depth(expected)
    if has != wanted:
        raise UsageError(
            f"{path} has {has} layers, the model {wanted}: choose its --arch, or --encoder-layers "
            f"{has}"
        )


def _check_positions(found: Shapes, expected: Shapes, path: Path) -> None:
    sizes = _sizes_that_differ(found, expected, f"{_ENCODER}embed_positions.weight", 0)
    if sizes is not None:
        # fairseq's positions begin after the padding symbol's index, 1.
        has, wanted = (size - 2 for size in sizes)
        raise UsageError(
            f"{path} has {has} positions, the model {wanted}: give --max-positions {has}"
        )


def _check_width(found: Shapes, expected: Shapes, path: Path) -> None:
    for name, option in (
        (f"{_ENCODER}embed_tokens.weight", "--encoder-embed-dim"),
        (f"{_ENCODER}layers.0.fc1.bias", "--encoder-ffn-embed-dim"),
    ):
        sizes = _sizes_that_differ(found, expected, name, -1)
        if sizes is not None:
            has, wanted = sizes
            raise UsageError(
                f"{path} has a width of {has}, the model {wanted}: choose its --arch, or "
                f"{option} {has}"
            )
