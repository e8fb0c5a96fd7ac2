"""Checkpoints of fairseq, from here or from strangers: read as data alone, and checked."""

from __future__ import annotations

import logging
import pickle
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.roberta import RobertaModel
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import existing_file

# How torch says that a pickle asks for a class or a function that is none of plain data.
_UNSAFE = re.compile(
    "(?i)unsupported (global|class)|not an allowed global|call reduce|can only (create|build)"
)

# What a stranger's checkpoint may choose from. fairseq has tasks and models that read, write and
# run whatever their options name.
_TASKS = (MaskedLMTask, MultiLingualMaskedLMTask, SentencePredictionTask, SentenceRankingTask)


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory: weights and plain values, never code.

    Both of torch's formats are read.

    Raises:
        UsageError: the file cannot be read, is cut short or no checkpoint of a model, or it
            holds objects whose loading could run code.
    """
    existing_file(path)
    try:
        # Not mapped into memory: fairseq writes checkpoint_last.pt in place, and to read a map of a
        # file that becomes shorter kills the process.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _UNSAFE.search(str(error)):
            raise UsageError(
                f"{path} holds objects other than weights, whose loading could run code: it is "
                "not loaded"
            ) from None
        raise UsageError(f"{path} is no checkpoint, or was cut short") from None
    except PermissionError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # torch and pickle raise whatever broken bytes lead them to
        raise UsageError(f"{path} is no checkpoint, or was cut short") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UsageError(f"{path} is no checkpoint of fairseq: it has no 'model'")
    for name, weight in state["model"].items():
        if not isinstance(name, str) or not is_plain(weight):
            raise UsageError(f"{path}: {name} is no plain tensor of numbers: it is not loaded")
    return state


def is_plain(value: Any) -> bool:
    """Whether something is a tensor that lies in memory number by number, as weights do.

    A file may hold others: without any memory, or with a hundred bytes for a billion numbers.
    """
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def config_of(state: dict[str, Any], path: Path, **overrides: Any) -> DictConfig:
    """fairseq's configuration that a checkpoint was trained by.

    Args:
        state: what :func:`load_state` read.
        path: where it came from, for the message.
        overrides: values for options of these names, wherever in the configuration they are.

    Raises:
        UsageError: there is none, or it is not one of this fairseq, or it would read this machine's
            environment.
    """
    try:
        _refuse_interpolations(state.get("args"), path)
        _refuse_interpolations(state.get("cfg"), path)
        if state.get("args") is not None:
            arguments = Namespace(**{**vars(state["args"]), **overrides})
            with _silent("fairseq.dataclass.utils"):  # it lists all options beside its exception
                return convert_namespace_to_omegaconf(arguments)
        if state.get("cfg") is not None:
            cfg = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
            overwrite_args_by_name(cfg, overrides)
            _ = cfg.task, cfg.model
            return cfg
    except UsageError:
        raise
    except Exception as error:  # strangers' values, anywhere inside fairseq, hydra and omegaconf
        raise UsageError(
            f"{path}: its options are not those of this fairseq: {one_line(error)}"
        ) from None
    raise UsageError(f"{path} is no checkpoint of fairseq: it has neither 'cfg' nor 'args'")


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Let a logger say nothing for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_interpolations(value: Any, path: Path) -> None:
    """Make sure that no option is like ``${oc.env:HOME}``; fairseq saves what these stand for."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        for key, each in value.items():
            _refuse_interpolations(key, path)
            _refuse_interpolations(each, path)
    elif isinstance(value, list | tuple):
        for each in value:
            _refuse_interpolations(each, path)
    elif isinstance(value, str) and "${" in value:
        raise UsageError(
            f"{path}: one of its options is {value!r:.100}, which would read from this machine: it "
            "is not loaded"
        )


def load_model(
    state: dict[str, Any], path: Path, **overrides: Any
) -> tuple[nn.Module, FairseqTask, DictConfig]:
    """Build the model of a checkpoint, by the checkpoint's own options, and load its weights.

    What fairseq's ``load_model_ensemble_and_task`` does, with everything checked on the way.

    Args:
        state: what :func:`load_state` read.
        path: where it came from, for messages.
        overrides: options that differ from the checkpoint's, such as ``data``.

    Returns:
        The model, in evaluation mode on the CPU, the task and the configuration.

    Raises:
        UsageError: it is no RoBERTa, it cannot be built, or the weights do not fit it.
    """
    cfg = config_of(state, path, **overrides)
    require_task(_name_of(cfg.task), path)
    require_roberta(_name_of(cfg.model), path)
    _check_size(cfg, state["model"], path)
    try:
        task = tasks.setup_task(cfg.task, from_checkpoint=True)
        model = task.build_model(cfg.model, from_checkpoint=True)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    except FileNotFoundError as error:
        raise UsageError(f"{path} needs {error.filename}, which does not exist") from None
    except Exception as error:  # strangers' values again
        raise UsageError(f"{path}: its model cannot be built: {one_line(error)}") from None
    check_fits(state, model, path)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    return model.eval(), task, cfg


def _name_of(options: Any) -> Any:
    """What fairseq calls the task or the model that options are for."""
    return getattr(options, "_name", None) or getattr(options, "arch", None)


def require_task(name: Any, path: Path) -> None:
    """Make sure that a checkpoint's task is one of those that RoBERTa is trained by.

    Raises:
        UsageError: it is not.
    """
    if not issubclass(TASK_REGISTRY.get(str(name), object), _TASKS):
        raise UsageError(
            f"{path} was trained by the task {name}: known are masked_lm, sentence_prediction, "
            "sentence_ranking and what extends them"
        )


def require_symbol(index: Any, name: str, symbols: int, path: Path) -> None:
    """Make sure that an option of a checkpoint is None, or the number of a symbol.

    Raises:
        UsageError: it is neither. fairseq's own tasks do not look.
    """
    if index is not None and not (type(index) is int and 0 <= index < symbols):
        raise UsageError(
            f"{path}: its {name} is {index!r:.100}: it must be the number of a symbol, from 0 to "
            f"{symbols - 1}; name the data that it was trained on"
        )


def require_roberta(name: Any, path: Path) -> None:
    """Make sure that a checkpoint's architecture is one of RoBERTa's.

    Raises:
        UsageError: it is not.
    """
    if not issubclass(ARCH_MODEL_REGISTRY.get(str(name), object), RobertaModel):
        raise UsageError(f"{path} is a model of the architecture {name}, not a RoBERTa")


_OUTPUT = "classification_heads.{}.out_proj.weight"


def classification_heads(state: Mapping[str, Any]) -> list[str]:
    """Names of the heads for whole sequences that a checkpoint, as read, has weights of."""
    return _heads_among(state["model"])


def _heads_among(names: Iterable[str]) -> list[str]:
    before, after = _OUTPUT.split("{}")
    return [
        name.removeprefix(before).removesuffix(after)
        for name in names
        if name.startswith(before) and name.endswith(after)
    ]


def _check_size(cfg: DictConfig, weights: Mapping[str, Tensor], path: Path) -> None:
    """Make sure that the options ask for no larger a model than the weights are.

    Numbers gone wrong would take all of the machine's memory before anything else is noticed.
    """
    shapes = {
        name.partition("sentence_encoder.")[2] or name: weight.shape
        for name, weight in weights.items()
    }
    heads = [len(weights[_OUTPUT.format(name)]) for name in _heads_among(weights)]
    try:
        found = {
            "encoder_layers": len(set(_numbers_of_layers(shapes))),
            "encoder_embed_dim": shapes["embed_tokens.weight"][1],
            "encoder_ffn_embed_dim": shapes["layers.0.fc1.weight"][0],
            "max_positions": shapes["embed_positions.weight"][0] - 2,
            "num_classes": max([1000, *heads]),  # so many are harmless
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


def check_fits(state: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Make sure that the weights of a checkpoint are those of a model.

    Args:
        state: what :func:`load_state` read.
        model: a model of fairseq, built for the data and the options at hand.
        path: where the state came from, for the message.

    Raises:
        UsageError: they are not; the message names what differs, and the remedy.
    """
    try:
        found = upgraded_shapes(state, model)
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


def upgraded_shapes(state: dict[str, Any], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's weights, under the names that the model has for them today."""
    weights = dict(state["model"])
    # fairseq says it all once more when it loads the checkpoint.
    with _silent("fairseq.models.roberta.model"):
        model.upgrade_state_dict_named(weights, "")
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


def _check_depth(found: Shapes, expected: Shapes, path: Path) -> None:
    layer = re.compile(re.escape(_ENCODER) + r"layers\.(\d+)\.")

    def depth(names: Iterable[str]) -> int:
        return len({match[1] for match in map(layer.match, names) if match})

    has, wanted = depth(found), depth(expected)
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
