"""Wrong usage ends before training, in one line that names the thing and says what would be right.

The tables are the test: what is changed of something that works, and what the line must hold. The
tests of each command have further ones, which are not repeated here.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data.indexed_dataset import make_builder
from support.in_process import everything_in, fairseq_train, run_command
from support.options import SMALL_MODEL, command_line
from support.places import PLUGIN

from alum_fairseq.checkpoints.reading import load_state
from alum_fairseq.convert.command import main as convert
from alum_fairseq.predict.command import main as predict
from alum_fairseq.prepare.command import main as prepare
from alum_fairseq.robustness.command import main as robustness

# fairseq-train

TRAINING = {
    **{"user-dir": PLUGIN, "cpu": True, "optimizer": "adam", "lr": 1e-3, "max-update": 2},
    **{"batch-size": 8, "num-workers": 0, "required-batch-size-multiple": 1},
    **{"no-epoch-checkpoints": True, "save-dir": "{tmp}/save"},
}
FINETUNING = {
    **{"arch": "roberta", "encoder-layers": 2, "encoder-embed-dim": 32, "max-positions": 40},
    **{"encoder-ffn-embed-dim": 64, "encoder-attention-heads": 4, "init-token": 0},
    **{"num-classes": 3},
}
# What works, by name; the data are copied for each test.
WORKS: dict[str, dict[str, Any]] = {
    "mlm": {
        **{"task": "alum_masked_lm", "criterion": "alum_mlm", **SMALL_MODEL},
        "sample-break-mode": "none",
    },
    "single": {
        **{"task": "alum_sentence_prediction", "criterion": "alum_sentence_prediction"},
        **FINETUNING,
    },
    "choices": {
        **{"task": "alum_sentence_ranking", "criterion": "alum_sentence_ranking"},
        **FINETUNING,
    },
}
WORKS["pair"] = {**WORKS["single"], "separator-token": 2}
WORKS["regression"] = {**WORKS["single"], "num-classes": 1, "regression-target": True}


def cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    """Leave the beginning of a file of the data."""

    def spoil(data: Path) -> None:
        content = (data / name).read_bytes()
        (data / name).write_bytes(content[: int(len(content) * share)])

    return spoil


def remove(*names: str) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        for name in names:
            path = data / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda data: (data / name).write_text(text) and None


def binarise(prefix: str, examples: list[list[int]]) -> Callable[[Path], None]:
    """Put these tokens there instead."""

    def spoil(data: Path) -> None:
        path = data / prefix
        builder = make_builder(f"{path}.bin", "mmap", 800)
        for tokens in examples:
            builder.add_item(torch.tensor(tokens))
        builder.finalize(f"{path}.idx")

    return spoil


def one_example(data: Path) -> None:
    """Leave one example, of a number, in ``valid``."""
    binarise("input0/valid", [[5, 6, 2]])(data)
    write("label/valid.label", "0.5\n")(data)


def copy_inputs(name: str) -> Callable[[Path], None]:
    """Make a split of the texts of ``valid``, without labels."""

    def spoil(data: Path) -> None:
        for path in data.glob("input*/valid.*"):
            shutil.copyfile(path, path.with_stem(name))

    return spoil


def drop_symbols(name: str, count: int) -> Callable[[Path], None]:
    """Leave the last ones out of a dictionary."""

    def spoil(data: Path) -> None:
        lines = (data / name).read_text().splitlines(keepends=True)
        (data / name).write_text("".join(lines[:-count]))

    return spoil


def close(name: str) -> Callable[[Path], None]:
    """Take everyone's rights of a file or a folder away."""
    return lambda data: (data / name).chmod(0)


def replace_byte(name: str, place: int, value: int) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        content = bytearray((data / name).read_bytes())
        content[place] = value
        (data / name).write_bytes(content)

    return spoil


# Options of another model, less those that it has not.
OTHER_MODEL = {"arch": "transformer", "max-positions": None}

Train = tuple[str, dict[str, Any], str, Callable[[Path], None] | None]
MISFIT = "is not there): with --task {0} add --criterion {0}"
CLOSED = " cannot be opened: Permission denied; check the permissions of the file and its folders"
CHOICE = "argument --alum-{}: invalid choice: "
TRAIN: list[Train] = [
    # Each option of ours out of its range.
    ("mlm", {"alum-alpha": -1}, "--alum-alpha is -1.0: it must be 0 (off) or more", None),
    ("mlm", {"alum-alpha": "nan"}, "--alum-alpha is nan: it must be 0 (off) or more", None),
    ("mlm", {"alum-alpha": "inf"}, "--alum-alpha is inf: it must be", None),
    ("mlm", {"alum-steps": -1}, "--alum-steps is -1: it must be a whole number, 0 or more", None),
    ("mlm", {"alum-epsilon": 0}, "--alum-epsilon is 0.0: it must be a finite number above 0", None),
    ("mlm", {"alum-epsilon": "nan"}, "--alum-epsilon is nan: it must be a finite number", None),
    ("mlm", {"alum-step-size": 0}, "--alum-step-size is 0.0: it must be a number above 0", None),
    ("mlm", {"alum-step-size": "nan"}, "--alum-step-size is nan: it must be a number", None),
    ("mlm", {"alum-noise-std": -1}, "--alum-noise-std is -1.0: it must be", None),
    ("mlm", {"alum-noise-std": "nan"}, "--alum-noise-std is nan: it must be", None),
    ("mlm", {"alum-site": -1}, "--alum-site is '-1': it must be words, embeddings, or", None),
    ("mlm", {"alum-site": 2}, "--alum-site is 2: it must be words, embeddings, or a layer", None),
    ("mlm", {"alum-site": "x"}, "--alum-site is 'x': it must be words, embeddings, or", None),
    ("mlm", {"alum-proximal": -1}, "--alum-proximal is -1.0: it must be 0 (off) or more", None),
    ("mlm", {"alum-start-update": -1}, "--alum-start-update is -1: it must be 0 or more", None),
    ("mlm", {"alum-warmup-updates": -2}, "--alum-warmup-updates is -2: it must be 0", None),
    ("mlm", {"alum-log-gain-interval": -1}, "--alum-log-gain-interval is -1: it must", None),
    ("mlm", {"alum-epsilon": "big"}, "argument --alum-epsilon: invalid", None),
    ("mlm", {"alum-steps": 1.5}, "argument --alum-steps: invalid", None),
    *(
        ("mlm", {f"alum-{name}": "x"}, CHOICE.format(name) + "'x'", None)
        for name in (
            *("epsilon-mode", "norm-scope", "gradient", "projection", "dropout", "memory"),
            *("start", "objective", "sides"),
        )
    ),
    (
        "mlm",
        {"alum-preset": "x"},
        "--alum-preset is 'x': it must be one of calibrated, paper,",
        None,
    ),
    ("mlm", {"alum-norm": "x"}, "--alum-norm is 'x': it must be one of linf, l2", None),
    ("mlm", {"alum-divergence": "x"}, "--alum-divergence is 'x': it must be one of kl, ", None),
    ("mlm", {"alum-fraction": 0}, "--alum-fraction is 0.0: it must be above 0 and at most", None),
    ("mlm", {"alum-fraction": "nan"}, "--alum-fraction is nan: it must be above 0 and at", None),
    # Options that are gone.
    ("mlm", {"alum-interval": 4}, "--alum-interval is gone: give --alum-fraction, which", None),
    ("mlm", {"alum-layer": 1}, "--alum-layer is gone: give --alum-site, with the layer's", None),
    ("mlm", {"alum-ascent": "random"}, "--alum-ascent is gone: for a random direction give", None),
    ("mlm", {"alum-ascent-precision": "bf16"}, "--alum-ascent-precision is gone: give", None),
    ("mlm", {"alum-step-layers": 1}, "--alum-step-layers is gone: leave it out", None),
    (
        "mlm",
        {"arch": "alum_roberta", "alum-layer-norm-eps": 0},
        "--alum-layer-norm-eps is 0.0: it must be positive",
        None,
    ),
    # Options that contradict each other.
    (
        "mlm",
        {"alum-noise-std": 0, "alum-steps": 1},
        "--alum-noise-std is 0: it must be above 0 when steps is",
        None,
    ),
    (
        "mlm",
        {"alum-start": "zero"},
        "--alum-start is zero: it must be normal or uniform when steps is above 0, since the",
        None,
    ),
    (
        "mlm",
        {"alum-preset": "freelb", "alum-objective": "divergence"},
        "--alum-objective is divergence: it must be task-loss, whose gradients FreeLB adds up",
        None,
    ),
    (
        "mlm",
        {"alum-preset": "fgm", "alum-memory": "low"},
        "--alum-memory is low, but has no effect with --alum-preset fgm: leave it out",
        None,
    ),
    (
        "mlm",
        {"alum-preset": "smart"},
        "--alum-proximal is 1 (--alum-preset smart), which compares with a momentum model: add "
        "--store-ema and --task alum_masked_lm, which make one, or give --alum-proximal 0",
        None,
    ),
    (
        "mlm",
        {"alum-memory": "low", "quant-noise-pq": 0.1},
        "--alum-memory is low: it runs the clean pass twice, and --quant-noise-pq would noise",
        None,
    ),
    (
        "single",
        {"task": "sentence_prediction", "alum-start-update": 2},
        "--alum-start-update needs the number of the update, which --task sentence_prediction does",
        None,
    ),
    (
        "regression",
        {"alum-divergence": "kl"},
        "--alum-divergence is kl: for regression it must be squared_error",
        None,
    ),
    (
        "single",
        {"task": "sentence_prediction", "alum-warmup-updates": 1},
        "--alum-warmup-updates needs the number of the update, which --task sentence_prediction "
        "does not pass on: use --task alum_sentence_prediction",
        None,
    ),
    (
        "single",
        {"best-checkpoint-metric": "adv_accuracy"},
        "--best-checkpoint-metric adv_accuracy is there with --alum-validate alone: add it",
        None,
    ),
    (
        "single",
        {"finetune-from-model": "{single}", "restore-file": "{single}"},
        "exclude each other: the first trains anew from weights, the second goes on",
        None,
    ),
    (
        "single",
        {"finetune-from-model": "{single}", "reset-meters": True},
        "--finetune-from-model resets everything by itself: leave out --reset-meters",
        None,
    ),
    # A criterion, and a task or a model that it cannot train.
    (
        "mlm",
        {"criterion": "alum_sentence_prediction"},
        "--criterion alum_sentence_prediction cannot train on the batches of --task "
        "alum_masked_lm: use --task alum_sentence_prediction",
        None,
    ),
    ("single", {"criterion": "alum_mlm"}, MISFIT.format("alum_sentence_prediction"), None),
    ("single", {"criterion": None}, MISFIT.format("alum_sentence_prediction"), None),
    (
        "choices",
        {"criterion": "alum_sentence_prediction"},
        MISFIT.format("alum_sentence_ranking"),
        None,
    ),
    (
        "mlm",
        {"task": "masked_lm", "criterion": "alum_sentence_prediction"},
        "cannot train on the batches of --task masked_lm: use --task alum_sentence_prediction",
        None,
    ),
    (
        "mlm",
        OTHER_MODEL,
        "ALUM cannot perturb a TransformerModel: it needs a RoBERTa",
        None,
    ),
    ("mlm", {"arch": "robertta"}, "argument --arch/-a: invalid choice: 'robertta'", None),
    ("mlm", {"task": "alum_mlm"}, "argument --task: invalid choice: 'alum_mlm'", None),
    # Heads, classes, symbols, positions.
    ("single", {"num-classes": None}, "--num-classes is -1: give the number of classes", None),
    (
        "single",
        {"num-classes": 2},
        "--num-classes is 2, but {data}/label has 3 classes (0, 1, 2): give --num-classes 3",
        None,
    ),
    (
        "single",
        {"num-classes": 4},
        "--num-classes is 4, but {data}/label has 3 classes (0, 1, 2): give --num-classes 3",
        None,
    ),
    ("single", {"num-classes": 1}, "--num-classes is 1: give the number of classes, 2 or", None),
    ("regression", {"num-classes": 2}, "is no label for --regression-target", None),
    (
        "regression",
        {"report-pearson-and-spearman": True},
        "valid has one example, which has no correlation: add examples, or leave out",
        one_example,
    ),
    ("choices", {"num-classes": 4}, "--num-classes is 4, but {data} has 3 candidates", None),
    ("choices", {"num-classes": 1}, "--num-classes is 1: give the number of candidates", None),
    ("single", {"init-token": 9999}, "--init-token is 9999: it must be the number of", None),
    ("pair", {"separator-token": -1}, "--separator-token is -1: it must be the number", None),
    ("choices", {"init-token": 9999}, "--init-token is 9999: it must be the number of", None),
    (
        "single",
        {"max-positions": 12},
        "tokens, but the model has 12 positions: give --shorten-method truncate, or "
        "--skip-invalid-size-inputs-valid-test to leave them out",
        None,
    ),
    (
        "mlm",
        {"max-positions": 30},
        "but the model has 30 positions: give --tokens-per-sample",
        None,
    ),
    ("mlm", {"tokens-per-sample": 2}, "--tokens-per-sample is 2: it must be 3 or more", None),
    ("mlm", {"mask-prob": 1.5}, "--mask-prob is 1.5: it must be above 0 and below 1", None),
    (
        "mlm",
        {"leave-unmasked-prob": 0.6, "random-token-prob": 0.6},
        "--leave-unmasked-prob is 0.6 and --random-token-prob 0.6: they must be 0 or more, and",
        None,
    ),
    # A checkpoint of another model.
    (
        "single",
        {"finetune-from-model": "{single}"},
        "{single} has a vocabulary of ",
        drop_symbols("input0/dict.txt", 9),
    ),
    (
        "single",
        {"finetune-from-model": "{single}", "max-positions": 64},
        "{single} does not fit the model: it has 40 positions, not 64: give --max-positions 40",
        None,
    ),
    (
        "single",
        {"finetune-from-model": "{single}", "encoder-layers": 3},
        "it has 2 layers, not 3: choose its --arch, or --encoder-layers 2",
        None,
    ),
    (
        "single",
        {"finetune-from-model": "{single}", "encoder-ffn-embed-dim": 32},
        "{single} does not fit the model: it has an inner width of 64, not 32: choose its",
        None,
    ),
    # Places.
    ("mlm", {"data": "{tmp}/nowhere"}, "{tmp}/nowhere does not exist", None),
    ("mlm", {"data": "{single}"}, "{single} is a file, not a folder", None),
    ("single", {"data": "{tmp}"}, "{tmp}/input0 does not exist", None),
    ("mlm", {"save-dir": "{single}"}, "--save-dir {single} is no folder that can be", None),
    ("mlm", {"save-dir": "{single}/x"}, "--save-dir {single}/x is no folder that can", None),
    ("mlm", {"restore-file": "{tmp}"}, "--restore-file {tmp} is a folder: name a checkpoint", None),
    ("mlm", {"finetune-from-model": "{tmp}"}, "--finetune-from-model {tmp} is a folder", None),
    ("mlm", {"finetune-from-model": "a.pt"}, "--finetune-from-model a.pt does not exist", None),
    ("mlm", {"restore-file": "{table}"}, "{table} is no checkpoint, or was cut short", None),
    ("mlm", {"train-subset": "most"}, "{data} has no subset most: it has train, valid", None),
    ("mlm", {"valid-subset": "dev"}, "{data} has no subset dev: it has train, valid", None),
    ("single", {"valid-subset": "dev"}, "{data}/input0 has no subset dev: it has train", None),
    ("mlm", {"data": "{data}:{tmp}"}, "{tmp}/train.idx does not exist", None),
    ("mlm", {}, "{data}/dict.txt" + CLOSED, close("dict.txt")),
    ("mlm", {}, "{data}/train.idx" + CLOSED, close("train.idx")),
    ("mlm", {}, "{data}/valid.bin" + CLOSED, close("valid.bin")),
    ("mlm", {"data": "{data}/."}, "{data}/dict.txt" + CLOSED, close(".")),
    ("single", {}, "{data}/input0/train.idx" + CLOSED, close("input0/train.idx")),
    ("single", {}, "{data}/label/dict.txt" + CLOSED, close("label/dict.txt")),
    ("regression", {}, "{data}/label/train.label" + CLOSED, close("label/train.label")),
    (
        "mlm",
        {"restore-file": "{data}/valid.bin"},
        "{data}/valid.bin cannot be read: Permission denied",
        close("valid.bin"),
    ),
    ("mlm", {"save-dir": "{tmp}/" + "x" * 300}, "is no folder that can be written to: File", None),
    # Data that are broken.
    ("mlm", {}, "{data}/train.bin is cut short, or {data}/train.idx is broken", cut("train.bin")),
    ("mlm", {}, "{data}/train.idx is cut short, or broken: for", cut("train.idx")),
    ("mlm", {}, "{data}/valid.idx is cut short: make the data again", cut("valid.idx", 0.001)),
    ("mlm", {}, "{data}/valid.bin does not exist", remove("valid.bin")),
    ("mlm", {}, "valid.idx is not an index of binarised data", replace_byte("valid.idx", 0, 0)),
    ("mlm", {}, "valid.idx is not an index of binarised data", replace_byte("valid.idx", 17, 99)),
    ("mlm", {}, "an example lies outside of its", replace_byte("valid.idx", 29, 255)),
    ("mlm", {}, "{data}/dict.txt is not a dictionary of fairseq", write("dict.txt", "a b c\n")),
    ("mlm", {}, "{data}/dict.txt does not exist", remove("dict.txt")),
    ("mlm", {}, "{data}/valid has no examples", binarise("valid", [])),
    ("single", {}, "{data}/input0/train has no examples", binarise("input0/train", [])),
    ("single", {}, "{data}/label does not exist", remove("label")),
    ("single", {}, "label/valid.bin does not exist", remove("label/valid.bin")),
    ("single", {}, "has 2 labels for 90 examples", binarise("label/train", [[4, 2], [5, 2]])),
    (
        "single",
        {},
        "valid.bin holds the number 7: labels are from 4 to 6",
        binarise("label/valid", [[7, 2]] * 90),
    ),
    (
        "single",
        {},
        "valid.bin holds the number 5000: the symbols of {data}/input0/dict.txt are from 0 to",
        binarise("input0/valid", [[5000, 2]] * 90),
    ),
    *(
        (
            kind,
            {"valid-subset": "valid,test"},
            f"test has no labels ({{data}}/label/test.{suffix}",
            copy_inputs("test"),
        )
        for kind, suffix in (("single", "idx"), ("regression", "label"), ("choices", "label"))
    ),
    ("single", {}, "valid has no labels ({data}/label/valid.idx", remove("label/valid.idx")),
    (
        "single",
        {"required-batch-size-multiple": 128, "batch-size": 128},
        "--required-batch-size-multiple is 128: 90 of 90 training examples are in no batch; give 1",
        None,
    ),
    (
        "single",
        {"report-acc-and-f1": True},
        "--report-acc-and-f1 is for two classes, and --num-classes is 3: leave it out",
        None,
    ),
    (
        "regression",
        {"report-mcc": True},
        "--report-mcc and --report-acc-and-f1 are for classes",
        None,
    ),
    ("pair", {}, "{data}/input1 has no subset train", remove("input1/train.idx")),
    ("pair", {}, "has 1 examples, but {data}/input0", binarise("input1/valid", [[5, 2]])),
    ("regression", {}, "train.label does not exist", remove("label/train.label")),
    ("regression", {}, "train.label has 1 labels for 90", write("label/train.label", "1.5\n")),
    (
        "regression",
        {},
        "valid.label:2: 'high' is no label",
        write("label/valid.label", "1\nhigh\n" + "1\n" * 88),
    ),
    (
        "choices",
        {},
        "train.label:1: '3' is no candidate: they are from 0 to 2",
        write("label/train.label", "3\n" * 90),
    ),
]


# The system's rights, which root's processes need not heed: they may write and read any file.
_IGNORES_RIGHTS = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH of Linux


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inherited"))


@contextmanager
def as_anyone() -> Iterator[None]:
    """Heed the rights of files, as the processes of anyone but root do."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, own = _Header(0x20080522, 0), (_Capabilities * 2)()  # version 3
    assert libc.capget(ctypes.byref(header), own) == 0
    before = own[0].effective
    try:
        own[0].effective = before & ~_IGNORES_RIGHTS
        assert libc.capset(ctypes.byref(header), own) == 0
        yield
    finally:
        own[0].effective = before
        assert libc.capset(ctypes.byref(header), own) == 0


@pytest.fixture(scope="module")
def places(
    cases: dict[str, Any], mlm_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Data by the name of what works on them, and checkpoints and a table for the options."""
    known = {kind: case.data for kind, case in cases.items()}
    headless = tmp_path_factory.mktemp("headless") / "model.pt"
    state = load_state(cases["single"].path)
    weights = state["model"]
    state["model"] = {name: weights[name] for name in weights if "classification_head" not in name}
    torch.save(state, headless)
    return {
        "data_of": {"mlm": mlm_data, **known},
        "table": cases["single"].table,
        "single": cases["single"].path,
        "choices": cases["choices"].path,
        "headless": headless,
        "vocabulary": cases["single"].data / "vocabulary",
    }


def test_what_the_table_changes_works(places: dict[str, Any], tmp_path: Path) -> None:
    for kind in WORKS:
        done = train(
            kind, {"save-dir": tmp_path / kind}, places["data_of"][kind], {"tmp": tmp_path}
        )
        assert done.error is None
        assert done.began
        assert (tmp_path / kind / "checkpoint_last.pt").is_file()


def train(kind: str, options: dict[str, Any], data: Path, names: dict[str, Any]) -> Any:
    chosen = {**TRAINING, **WORKS[kind], "data": data, **options}
    chosen = {
        name: value.format_map(names) if isinstance(value, str) else value
        for name, value in chosen.items()
    }
    return fairseq_train(chosen.pop("data"), *command_line(chosen))


# Each takes a second, most of which hydra needs to compose the options: a quarter in every run.
SOME = [
    row if number % 4 == 0 else pytest.param(*row, marks=pytest.mark.slow)
    for number, row in enumerate(TRAIN)
]


@pytest.mark.parametrize(("kind", "options", "words", "spoil"), SOME)
def test_training(
    kind: str,
    options: dict[str, Any],
    words: str,
    spoil: Callable[[Path], None] | None,
    places: dict[str, Any],
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(places["data_of"][kind], data)
    if spoil is not None:
        spoil(data)
    names = {**places, "data": data, "tmp": tmp_path}
    before = everything_in(tmp_path)
    with as_anyone():
        done = train(kind, options, data, names)
    assert done.error is not None
    assert words.format_map(names) in done.error
    assert "\n" not in done.error
    assert not done.began
    assert everything_in(tmp_path) == before


# alum-prepare, alum-convert, alum-predict, alum-robustness

COMMANDS = {
    "prepare": (
        prepare,
        {
            **{"train": "{table}", "columns": "a", "label": "label", "workers": 1},
            **{"vocabulary": "{vocabulary}", "output": "{tmp}/out"},
        },
    ),
    "from-hf": (convert, {}),
    "to-hf": (convert, {}),
    "predict": (predict, {"path": "{single}", "input": "{table}", "output": "{tmp}/out.tsv"}),
    "robustness": (
        robustness,
        {
            **{"path": "{single}", "quick": True, "parts": "noise", "examples": 4},
            **{"output": "{tmp}/out"},
        },
    ),
    "synonyms": (robustness, {}),
}
# The table of what cannot be read, and the options, as for training.
COMMAND_ROWS: list[tuple[str, list[str], dict[str, Any], str]] = [
    ("prepare", [], {"train": "{tmp}"}, "{tmp} is a folder, not a file"),
    ("prepare", [], {"workers": 0}, "--workers is 0: it must be 1 or more"),
    ("prepare", [], {"workers": "many"}, "argument --workers: invalid int value: 'many'"),
    ("prepare", [], {"format": "xml"}, "argument --format: invalid choice: 'xml'"),
    ("prepare", [], {"train": "{tmp}/notes.doc"}, "notes.doc: its name does not tell its format"),
    ("prepare", [], {"vocabulary": "{tmp}"}, "{tmp} has no dict.txt"),
    ("prepare", [], {"vocabulary": "{table}"}, "{table} is a file, not a folder"),
    ("prepare", [], {"output": "{table}/x"}, "{table}/x cannot be written"),
    ("prepare", [], {"output": "{vocabulary}"}, "{vocabulary} exists: remove it, or name another"),
    ("prepare", [], {"columns": "text"}, "there is no text: there are a, label"),
    ("prepare", [], {"columns": "a a a"}, "--columns names 3 columns: fairseq reads one"),
    ("prepare", [], {"label": "class"}, "there is no class: there are a, label"),
    ("prepare", [], {"header": True}, "--header is for TSV and CSV: JSON-lines name their columns"),
    ("prepare", [], {"regression": True}, "the label 'no' is no number"),
    ("prepare", [], {"labels": "no"}, "--labels no: name all classes, two or more"),
    ("prepare", [], {"labels": "no yes"}, "the label 'well, maybe' is none of the classes (no,"),
    ("prepare", [], {"task": "RTE"}, "--task RTE knows the layout: leave out --train"),
    ("prepare", [], {"valid": "{tmp}/dev.jsonl"}, "{tmp}/dev.jsonl does not exist"),
    ("prepare", [], {"max-positions": -5}, "--max-positions is -5: it must be 6 or more"),
    ("to-hf", ["{tmp}/no.pt", "{tmp}/out"], {}, "{tmp}/no.pt does not exist"),
    ("to-hf", ["{tmp}", "{tmp}/out"], {}, "{tmp} is a folder, not a file"),
    ("to-hf", ["{single}", "{vocabulary}"], {}, "{vocabulary} exists: remove it, or name another"),
    (
        "to-hf",
        ["{single}", "{tmp}/out"],
        {"head": "x"},
        "has no head x: give --head, one of",
    ),
    ("to-hf", ["{single}", "{tmp}/out"], {"data": "{tmp}/x"}, "--data {tmp}/x is no folder"),
    ("to-hf", ["{single}", "{tmp}/out"], {"data": "{tmp}"}, "does not say how its text was cut"),
    ("to-hf", ["{single}", "{tmp}/out"], {"vocabulary": "{tmp}"}, "{tmp} has no dict.txt"),
    ("to-hf", ["{single}", "{table}/x"], {}, "{table}/x cannot be written"),
    ("from-hf", ["{tmp}/no", "{tmp}/out"], {}, "{tmp}/no does not exist"),
    ("from-hf", ["{single}", "{tmp}/out"], {}, "{single} is a file, not a folder"),
    ("from-hf", ["{tmp}", "{tmp}/out"], {}, "{tmp} has no config.json"),
    ("predict", [], {"max-tokens": -1}, "--max-tokens is -1: it must be 1 or more"),
    ("predict", [], {"fp16": True, "cpu": True}, "--fp16 needs a GPU"),
    ("predict", [], {"path": None}, "the following arguments are required: --path"),
    ("predict", [], {"path": "{vocabulary}"}, "{vocabulary} is a folder, not a file"),
    ("predict", [], {"data": "{table}"}, "--data {table} is no folder"),
    ("predict", [], {"labels": "a b"}, "has 3, not the 2 of --labels"),
    ("predict", [], {"labels": "a b b"}, "--labels a b b: one of them comes twice"),
    ("predict", [], {"columns": "a a"}, "an example has 2 texts, of those trained on 1"),
    ("predict", [], {"output-format": "xml"}, "argument --output-format: invalid choice: 'xml'"),
    ("predict", [], {"input": "{tmp}", "columns": 1}, "{tmp} is a folder, not a file"),
    ("predict", [], {"path": "{choices}", "columns": "a"}, "the model chooses among 3"),
    ("predict", [], {"path": "{headless}"}, "{headless} has no classification head: it was not"),
    ("robustness", [], {"path": "{headless}"}, "{headless} has no classification head: it was"),
    ("robustness", [], {"path": "={single}"}, "--path ={single}: there is no name before the"),
    ("robustness", [], {"path": "{single} {single}"}, "{single}: the checkpoint is given twice"),
    ("robustness", [], {"path": "{single} {choices}"}, "too: put NAME= before both"),
    ("robustness", [], {"path": "a={single} b={choices}"}, "they cannot be compared"),
    ("robustness", [], {"subset": "dev"}, "has no subset dev: it has train, valid"),
    ("robustness", [], {"output": "{table}"}, "{table} is a file, not a folder"),
    ("robustness", [], {"output": "{table}/x"}, "{table} is a file, not a folder"),
    ("robustness", [], {"parts": "magic"}, "argument --parts: invalid choice: 'magic'"),
    ("robustness", [], {"textattack": "X"}, "attacks by TextAttack's recipes need it installed"),
    ("robustness", [], {"adversarial-set": "anli:{tmp}/dev.jsonl"}, "dev.jsonl does not exist"),
    ("robustness", [], {"label": "label"}, "are those of --input, which is not given"),
    ("robustness", [], {"max-edits": 1.5}, "--max-edits is 1.5: a share of the words is above 0"),
]


def command_words(words: list[str], options: dict[str, Any], names: dict[str, Any]) -> list[str]:
    """Options as words; a text with blanks is several."""
    for name, value in options.items():
        if value is None:
            continue
        words = [*words, f"--{name}", *([] if value is True else str(value).split(" "))]
    return [word.format_map(names) for word in words]


@pytest.mark.parametrize(("command", "given", "options", "words"), COMMAND_ROWS)
def test_commands(
    command: str,
    given: list[str],
    options: dict[str, Any],
    words: str,
    places: dict[str, Any],
    tmp_path: Path,
) -> None:
    main, usual = COMMANDS[command]
    first = [] if usual else [command]
    names = {**places, "tmp": tmp_path}
    ended = run_command(main, *command_words([*first, *given], {**usual, **options}, names))
    assert words.format_map(names) in ended.error
    assert everything_in(tmp_path) == {}
    assert not (tmp_path / "out").exists()


FOLDER, FILE = (
    f"{{there}} exists: remove it, or name another {kind}" for kind in ("folder", "file")
)
REPORT = "{there}/report.json is no report of alum-robustness: remove it, or give another --output"
OTHER = (
    "{there} holds the report of other checkpoints (/other.pt): remove it, or give another --output"
)
CHECKPOINTS = '{"models": [{"checkpoints": [{"path": "/other.pt"}]}]}'
OUTPUT_ROWS: list[tuple[str, list[str], dict[str, Any], str, str]] = [
    ("prepare", [], {"output": "{there}"}, "dict.txt", FOLDER),
    ("prepare", [], {"output": "{there}"}, "", FOLDER),
    ("to-hf", ["{single}", "{there}"], {}, "config.json", FOLDER),
    ("to-hf", ["{single}", "{there}"], {}, "", FOLDER),
    ("from-hf", ["{tmp}/no", "{there}"], {}, "model.pt", FOLDER),
    ("from-hf", ["{tmp}/no", "{there}"], {}, "", FOLDER),
    ("predict", [], {"output": "{there}", "output-format": "tsv"}, "", FILE),
    ("synonyms", ["{table}", "{there}"], {}, "", FILE),
    ("robustness", [], {"output": "{there}"}, "report.json", REPORT),
    ("robustness", [], {"output": "{there}"}, f"report.json {CHECKPOINTS}", OTHER),
    ("robustness", [], {"output": "{there}"}, "", "{there} is a file, not a folder"),
]


@pytest.mark.parametrize(("command", "given", "options", "made", "words"), OUTPUT_ROWS)
def test_no_command_overwrites_what_exists(
    command: str,
    given: list[str],
    options: dict[str, Any],
    made: str,
    words: str,
    places: dict[str, Any],
    tmp_path: Path,
) -> None:
    """``made``: the name of a file in the folder that is there, and its text; empty: a file."""
    name, _, text = made.partition(" ")
    there = tmp_path / "there" / name if name else tmp_path / "there"
    there.parent.mkdir(exist_ok=True)
    there.write_text(text or "precious")
    before = everything_in(tmp_path)
    main, usual = COMMANDS[command]
    first = [] if usual else [command]
    names = {**places, "tmp": tmp_path, "there": tmp_path / "there"}
    ended = run_command(main, *command_words([*first, *given], {**usual, **options}, names))
    assert ended.error == words.format_map(names)
    assert everything_in(tmp_path) == before


CLOSED_ROWS: list[tuple[str, list[str], dict[str, Any], str]] = [
    ("prepare", [], {"train": "{closed}"}, "{table}"),
    ("prepare", [], {"vocabulary": "{tmp}/copy"}, "{vocabulary}/dict.txt"),
    ("prepare", [], {"vocabulary": "{closed}"}, "{vocabulary}"),
    ("prepare", [], {"output": "{closed}/out"}, "{vocabulary}"),
    ("to-hf", ["{closed}", "{tmp}/out"], {}, "{single}"),
    ("to-hf", ["{single}", "{closed}/out"], {}, "{vocabulary}"),
    ("to-hf", ["{single}", "{tmp}/out"], {"vocabulary": "{closed}"}, "{vocabulary}"),
    ("from-hf", ["{closed}", "{tmp}/out"], {}, "{hf}"),
    ("from-hf", ["{tmp}/copy", "{tmp}/out"], {}, "{hf}/config.json"),
    ("from-hf", ["{tmp}/copy", "{tmp}/out"], {}, "{hf}/model.safetensors"),
    ("from-hf", ["{tmp}/copy", "{tmp}/out"], {}, "{hf}/tokenizer.json"),
    ("predict", [], {"path": "{closed}"}, "{single}"),
    ("predict", [], {"input": "{closed}"}, "{table}"),
    ("predict", [], {"data": "{closed}"}, "{data_of[single]}"),
    ("predict", [], {"output": "{closed}/out.tsv"}, "{vocabulary}"),
    ("robustness", [], {"path": "{closed}"}, "{single}"),
    ("robustness", [], {"data": "{tmp}/copy"}, "{data_of[single]}/input0/valid.bin"),
    ("robustness", [], {"data": "{tmp}/copy"}, "{data_of[single]}/alum-prepare.json"),
    ("robustness", [], {"output": "{closed}/out"}, "{vocabulary}"),
]


@pytest.mark.parametrize(("command", "given", "options", "what"), CLOSED_ROWS)
def test_what_is_closed_to_the_user(
    command: str,
    given: list[str],
    options: dict[str, Any],
    what: str,
    places: dict[str, Any],
    hf_folder: Path,
    tmp_path: Path,
) -> None:
    """A copy of a file, or of the folder that it is in, from which the rights are taken away."""
    names = {**places, "tmp": tmp_path, "hf": hf_folder}
    source = Path(what.format_map(names))
    in_folder = "{tmp}/copy" in [*given, *options.values()]
    target = tmp_path / ("copy" if in_folder else f"copy{source.suffix}")
    if in_folder:
        root = next(
            folder
            for folder in (hf_folder, places["vocabulary"], places["data_of"]["single"])
            if source.is_relative_to(folder)
        )
        shutil.copytree(root, target)
        closed = target / source.relative_to(root)
    else:
        closed = target
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    main, usual = COMMANDS[command]
    first = [] if usual else [command]
    words = command_words([*first, *given], {**usual, **options}, {**names, "closed": closed})
    before = everything_in(tmp_path)
    closed.chmod(0)
    with as_anyone():
        ended = run_command(main, *words)
    assert str(closed) in ended.error
    assert "Permission denied" in ended.error
    closed.chmod(0o755)
    assert everything_in(tmp_path) == before


# A disk that is full, or as good as that: no file may have more than so many bytes.


@contextmanager
def at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # as Python does: an OSError instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("command", "given", "size"),
    [
        ("prepare", [], 100),
        ("prepare", [], 2000),
        ("to-hf", ["{single}", "{tmp}/out"], 1000),
        ("to-hf", ["{single}", "{tmp}/out"], 150_000),
        ("from-hf", ["{hf}", "{tmp}/out"], 1000),
        ("from-hf", ["{hf}", "{tmp}/out"], 100_000),
        ("predict", [], 100),
        ("robustness", [], 100),
    ],
)
def test_a_full_disk(
    command: str,
    given: list[str],
    size: int,
    places: dict[str, Any],
    hf_folder: Path,
    tmp_path: Path,
) -> None:
    main, options = COMMANDS[command]
    first = [] if options else [command]
    names = {**places, "tmp": tmp_path, "hf": hf_folder}
    words = command_words([*first, *given], options, names)
    with at_most(size):
        ended = run_command(main, *words)
    assert "cannot be written: File too large" in ended.error
    assert everything_in(tmp_path) == {}
    assert run_command(main, *words).status == 0  # where there is room
    assert everything_in(tmp_path)


def test_training_on_a_full_disk(places: dict[str, Any], tmp_path: Path) -> None:
    save = tmp_path / "save"
    with at_most(100_000):
        done = train("single", {}, places["data_of"]["single"], {"tmp": tmp_path})
    assert done.error == f"--save-dir {save} is no folder that can be written to: File too large"
    assert not done.began
    assert everything_in(tmp_path) == {}


@pytest.fixture(scope="module")
def hf_folder(places: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    assert run_command(convert, "to-hf", places["single"], folder).status == 0
    return folder


def test_output_that_nobody_can_take(places: dict[str, Any]) -> None:
    """A process of its own, since its standard output is a full device."""
    program = Path(sys.executable).with_name("alum-predict")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [program, "--path", places["single"], "--input", places["table"]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last == ("alum-predict: error: the output cannot be written: No space left on device")


def test_the_tables_are_as_long_as_they_should_be() -> None:
    assert len(TRAIN) + len(COMMAND_ROWS) + len(CLOSED_ROWS) >= 160
