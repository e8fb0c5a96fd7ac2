"""The options of every command that loads fine-tuned models."""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alum_fairseq import cli
from alum_fairseq.errors import UsageError
from alum_fairseq.predict.predictor import MAX_TOKENS, Predictor
from alum_fairseq.problems import Classification, SpanPrediction, SupervisedProblem

_say_once = functools.cache(cli.say)


def add_model_options(group: Any) -> None:
    """Add the options that say how a checkpoint is read."""
    group.add_argument(
        "--data",
        type=Path,
        metavar="DATA",
        help="folder that it was fine-tuned on (default: the one that the checkpoint names)",
    )
    group.add_argument(
        "--vocabulary",
        type=Path,
        metavar="DIR",
        help="the model's dict.txt, and the files of its BPE (default: DATA/vocabulary)",
    )
    group.add_argument(
        "--head", metavar="NAME", help="classification head (default: the one that was trained)"
    )
    group.add_argument(
        "--labels",
        type=str.strip,
        nargs="+",
        metavar="LABEL",
        help="the classes in their order (default: the data's)",
    )
    group.add_argument(
        "--null-threshold",
        type=float,
        metavar="NUMBER",
        help="of a question that may have no answer: how much more than the best span that must "
        "score (default: 0); validation logs which number is best",
    )


def add_compute_options(group: Any) -> None:
    """Add the options that say how models are run."""
    group.add_argument(
        "--max-tokens",
        type=int,
        default=MAX_TOKENS,
        metavar="N",
        help=f"most tokens of a batch (default: {MAX_TOKENS})",
    )
    group.add_argument("--cpu", action="store_true", help="on the CPU, even if there is a GPU")


def on_gpu(arguments: argparse.Namespace) -> bool:
    """Whether to compute on a GPU."""
    return torch.cuda.is_available() and not arguments.cpu


def load_predictor(path: Path, arguments: argparse.Namespace) -> Predictor:
    """Load a checkpoint as the options say; tell the user once if nothing names its classes.

    Raises:
        UsageError: an option is out of its range, or the checkpoint cannot be loaded.
    """
    if arguments.max_tokens < 1:
        raise UsageError(f"--max-tokens is {arguments.max_tokens}: it must be 1 or more")
    predictor = Predictor.load(
        path,
        arguments.data,
        arguments.vocabulary,
        arguments.head,
        arguments.labels,
        "cuda" if on_gpu(arguments) else "cpu",
    )
    predictor.problem = _with_settings(predictor.problem, arguments)
    if not on_gpu(arguments):
        cli.choose_threads()
    if isinstance(predictor.problem, Classification) and predictor.checkpoint.labels is None:
        _say_once(f"{path}: nothing names its classes: 0, 1, ... is the order of its head")
    return predictor


def _with_settings(problem: SupervisedProblem, arguments: argparse.Namespace) -> SupervisedProblem:
    names = ("n_best", "null_threshold")
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    if given and not isinstance(problem, SpanPrediction):
        option = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{option} is for questions, but the model has {problem.answers}")
    return replace(problem, **given)
