"""The benchmark: its counts against the cost model written out, its bounds, its report."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.passes import PASSES
from support.places import ROOT

from alum_fairseq import cli

sys.path.insert(0, str(ROOT / "scripts"))
import benchmark

SHAPE = {
    **{"layers": 4, "width": 64, "heads": 4, "vocabulary": 600, "batch": 4, "tokens": 64},
    "train-updates": 40,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "report.json"
    shape = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
    assert benchmark.main([*shape, "--rounds", "1", "--cpu", "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.fixture(params=benchmark.TASKS)
def results(request: pytest.FixtureRequest, report: dict[str, Any]) -> dict[str, Any]:
    return report["results"][request.param]["fp32"]


def products(task: str) -> tuple[float, float, float]:
    """Multiplications with weights in the layers and in the head, and of attention: a forward pass.

    Written out from the architecture: four D x D projections and a feed-forward net of 4 D in each
    layer, QK and AV in attention, and a head on the masked words (D x D, D x V) or the sentences.
    """
    layers, d, t = SHAPE["layers"], SHAPE["width"], SHAPE["tokens"]
    words = SHAPE["batch"] * t
    in_layers = layers * words * (4 * d * d + 2 * 4 * d * d)
    attention = layers * words * 2 * t * d
    if task == "masked_lm":
        batches = benchmark.Batches(
            *reversed(benchmark.words_of_the_python_manual(SHAPE["vocabulary"])), SHAPE["batch"], t
        )
        masked = batches.of(task, seed=10**6)["target"].ne(batches.dictionary.pad()).sum().item()
        return in_layers, masked * (d * d + d * SHAPE["vocabulary"]), attention
    return in_layers, SHAPE["batch"] * (d * d + d * benchmark.CLASSES), attention


@pytest.mark.parametrize("task", benchmark.TASKS)
@pytest.mark.parametrize("mode", PASSES)
def test_floating_point_operations_are_those_of_the_cost_model(
    mode: str, task: str, report: dict[str, Any]
) -> None:
    forward, inputs, weights = PASSES[mode]
    layers, head, attention = products(task)
    expected = (forward + inputs + weights) * layers + (forward + 2 * inputs) * attention
    expected += (forward + inputs + weights) * head
    found = report["results"][task]["fp32"][mode]["flops"]
    # A quarter of the sequences need not hold a quarter of the masked words.
    assert found == pytest.approx(2 * expected, rel=0.02 if mode.startswith("a quarter") else 1e-6)


def test_the_costs_are_those_of_all_modes() -> None:
    assert list(PASSES) == list(benchmark.MODES)


def test_memory(results: dict[str, Any]) -> None:
    memory = {mode: result["memory_ratio"] for mode, result in results.items()}
    assert memory["stock"] == 1
    assert 1.4 < memory["exact"] < 2
    assert memory["low memory"] < 1.25
    assert memory["a quarter of the batch"] < 1.35
    assert memory["K=3"] == pytest.approx(memory["exact"], rel=0.02)


def test_gains(results: dict[str, Any]) -> None:
    assert "gain" not in results["stock"]
    for mode in ("exact", "K=2", "vat", "fgm", "pgd"):
        assert results[mode]["gain"] > 2, mode
    assert 0.5 < results["random"]["gain"] < 2
    # A part of the batch and low memory are the exact adversary.
    for mode in ("low memory", "a quarter of the batch"):
        assert results[mode]["divergence"] == pytest.approx(results["exact"]["divergence"])
    # On a model that learnt so little, steps after the first can overshoot.
    assert results["K=3"]["divergence"] > 0.8 * results["exact"]["divergence"]


def test_the_report_says_what_it_was_taken_on(report: dict[str, Any]) -> None:
    assert report["size"]["layers"] == SHAPE["layers"]
    assert {"device", "threads", "python", "torch", "fairseq"} <= report["machine"].keys()
    for results in report["results"].values():
        for result in results["fp32"].values():
            assert result["seconds"] > 0
            assert result["time_ratio_low"] <= result["time_ratio"] <= result["time_ratio_high"]


@pytest.mark.slow  # the first use of torch.compile takes half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_stock_can_be_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    size = ["--size", "tiny", "--train-updates", "5", "--tasks", "masked_lm", "--cpu"]
    benchmark.main([*size, "--modes", "exact", "--rounds", "1", "--compile"])
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"stock", "exact", "stock, compiled"} <= set(rows)
    assert stats["calls_captured"] > 0


def test_the_optimizer_and_the_precision_change_what_is_held(tmp_path: Path) -> None:
    def held(*options: str) -> dict[str, float]:
        path = tmp_path / "report.json"
        size = ["--size", "tiny", "--train-updates", "0", "--tasks", "masked_lm", "--cpu"]
        more = ["--modes", "exact", "--rounds", "0", "--precision", "fp32", "bf16", *options]
        assert benchmark.main([*size, *more, "--json", str(path)]) == 0
        results = json.loads(path.read_text())["results"]["masked_lm"]
        return {precision: found["stock"]["memory"] for precision, found in results.items()}

    model = benchmark.build_model(
        benchmark.SIZES["tiny"], benchmark.words_of_the_python_manual(600)[0]
    )
    parameters = 4 * sum(p.numel() for p in model.parameters())
    without, with_adam = held(), held("--optimizer")
    assert without["bf16"] < 0.85 * without["fp32"]  # the softmax stays in float32
    # Two moments; of weights in half precision also a copy in float32, and its gradient.
    assert with_adam["fp32"] - without["fp32"] > 1.9 * parameters
    assert with_adam["bf16"] - without["bf16"] > 2.9 * parameters


def test_times_are_compared_with_stock_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now, speed = 0.0, 1.0

    def work(amount: float) -> Callable[[], None]:
        def run() -> None:
            nonlocal now, speed
            now += amount / speed
            speed /= 1.02  # the machine gets ever slower

        return run

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now)
    run = {"stock": work(1.0), "three": work(3.0), "two": work(2.0)}
    compared = benchmark.compare_times(run, 9, 1, False)
    for name, ratio in {"stock": 1.0, "three": 3.0, "two": 2.0}.items():
        one = compared[name]
        assert one["time_ratio"] == pytest.approx(ratio, rel=1e-3)
        assert one["time_ratio_low"] == pytest.approx(one["time_ratio_high"], rel=1e-3)
        assert one["seconds"] > 1.5 * ratio  # not what it takes on the machine as it was


def test_a_checkpoint_can_be_taken(
    trained_model: Path, mlm_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--checkpoint", str(trained_model), "--data", str(mlm_data)]
    rest = ["--tasks", "masked_lm", "--modes", "exact", "--rounds", "0", "--batch", "8"]
    benchmark.main([*model, *rest, "--tokens", "64", "--cpu"])
    printed = capsys.readouterr().out
    assert "trained for" not in printed
    told = json.loads(printed.splitlines()[0])["size"]
    assert told | {"layers": 2, "width": 64, "heads": 4} == told  # the model's, not --size's
    assert told["vocabulary"] == len((mlm_data / "dict.txt").read_text().splitlines()) + 5
    [exact] = [line.split() for line in printed.splitlines() if line.startswith("exact")]
    assert float(exact[-2]) > 10  # a trained model has adversarial directions


def test_a_checkpoint_has_so_many_positions(
    trained_model: Path, mlm_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--checkpoint", str(trained_model), "--data", str(mlm_data)]
    assert benchmark.main([*model, "--tokens", "4000", "--cpu"]) == cli.WRONG_USAGE
    *_, said = capsys.readouterr().err.splitlines()
    assert re.search(r"--tokens is 4000, but the model has \d{2,3} positions", said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "x.pt"], "--checkpoint and --data go together"),
        (["--checkpoint", "nowhere/x.pt", "--data", "."], "nowhere/x.pt"),
        (["--checkpoint", __file__, "--data", "nowhere"], "nowhere"),
        (["--checkpoint", __file__, "--data", "."], __file__),
        (["--rounds", "-1"], "--rounds is -1: it must be 0 (no timings) or more"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: there is no folder nowhere"),
        (["--modes", "free"], "invalid choice: 'free'"),
        (["--tokens", "100000"], "too few for 100000 tokens"),
        (["--tokens", "2"], "--tokens is 2: it must be 3 or more"),
        (["--vocabulary", "5"], "--vocabulary is 5: it must be 6 or more"),
        (["--heads", "3"], "--heads is 3: it must divide the width, 128"),
        (["--batch", "0"], "--batch is 0: it must be 1 or more"),
        (["--batch", "2"], "--batch is 2: the mode 'a quarter of the batch' needs a multiple of 4"),
        (["--preset", "none"], "--alum-preset is 'none': it must be one of"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = benchmark.main(arguments)
    except SystemExit as stop:  # argparse's
        status = stop.code
    assert status == cli.WRONG_USAGE
    *_, said = capsys.readouterr().err.splitlines()
    assert message in said
