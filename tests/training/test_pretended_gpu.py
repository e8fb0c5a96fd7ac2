"""On a pretended GPU: the numbers of the CPU, what updates launch, how often the host waits."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT
from support.pretended_runs import methods, others, with_checkpoints
from support.solved import solve
from support.trainers import KINDS
from support.untrained import KINDS as CHECKPOINTS
from support.untrained import TOKENS, make_token_case

RECORDED = Path(__file__).with_name("host_waits.md")
COLUMNS = ("stock", "exact", "low memory", "fgm", "pgd", "freelb", "smart")
# How far apart kernels are, and what autocast computes in half precision; else 1e-5.
ROUNDING = {"bf16": 0.06, "fp16": 0.02, "amp": 0.02, "robustness": 1e-3}


def start(program: str, *words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"support.{program}", *map(str, words)],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(program: subprocess.Popen[str]) -> dict[str, Any]:
    written, said = program.communicate()
    assert program.returncode == 0, said[-4000:]
    return json.loads(written)


@pytest.fixture(scope="module")
def programs(
    cases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, subprocess.Popen[str]]:
    """Side by side."""
    folder = tmp_path_factory.mktemp("pretended")
    of_tokens = {kind: solve(make_token_case(kind, folder), folder) for kind in TOKENS}
    for case in of_tokens.values():
        del case.predictor
    pickled = folder / "cases.pickle"
    pickled.write_bytes(pickle.dumps({**cases, **of_tokens}))
    return {
        "runs": start("pretended_runs", "some", "--cases", pickled),
        "faults": start("pretended_runs", "faults"),
        "counts": start("counted_updates"),
    }


@pytest.fixture(scope="module")
def counts(programs: dict[str, Any]) -> dict[str, Any]:
    return outcome(programs["counts"])


@pytest.fixture(scope="module")
def faulty(programs: dict[str, Any]) -> dict[str, Any]:
    return outcome(programs["faults"])


@pytest.fixture(scope="module")
def found(programs: dict[str, Any]) -> dict[str, Any]:
    return outcome(programs["runs"])


@pytest.fixture(scope="module")
def found_in_all() -> dict[str, Any]:
    return outcome(start("pretended_runs", "all"))


def names(runs: Iterable[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in runs]


NAMES = names(
    (*methods(every=False), *others(), *with_checkpoints(dict.fromkeys((*CHECKPOINTS, *TOKENS))))
)


def check_numbers(name: str, run: dict[str, Any]) -> None:
    """Those of the CPU but for rounding: kernels differ, and what autocast computes in what."""
    assert "refused" not in run, run["refused"]
    assert run
    bound = next((bound for part, bound in ROUNDING.items() if name.endswith(part)), 1e-5)
    assert {what: error for what, error in run.items() if not error < bound} == {}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_cpu(name: str, found: dict[str, Any]) -> None:
    check_numbers(name, found[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", names(methods(every=True)))
def test_numbers_are_those_of_the_cpu_in_every_combination(
    name: str, found_in_all: dict[str, Any]
) -> None:
    check_numbers(name, found_in_all[name])


def test_the_benchmark_measures(found: dict[str, Any]) -> None:
    assert "refused" not in found["benchmark"], found["benchmark"]["refused"]
    stock, exact = found["benchmark"]["stock"], found["benchmark"]["exact"]
    assert 2.5 < exact["flops_ratio"] < 3
    assert exact["gain"] > 5
    assert exact["seconds"] > stock["seconds"] > 0
    # No trainer and no metrics: the encoder, the criterion, the head and its backward pass.
    assert 5 <= stock["host_waits"] <= exact["host_waits"] <= stock["host_waits"] + 2


REFUSALS = {
    "generator of the CPU": "start: its generator is on the cpu",
    "tensor on the CPU": "beside tensors on the GPU, of shape [(4, 9, 1)] on the CPU",
}
WRONG = ("state not restored", "state not restored in low memory")


@pytest.mark.parametrize("name", [*REFUSALS, *WRONG])
def test_faults_turn_the_numbers_red(name: str, faulty: dict[str, Any]) -> None:
    with pytest.raises(AssertionError) as red:
        check_numbers(name, faulty[name])
    assert REFUSALS.get(name, "") in str(red.value)
    assert ("refused" in faulty[name]) == (name in REFUSALS)


def table(kind: str, counts: dict[str, Any]) -> str:
    """Where the host waits, how often in an update of each column: a part of `RECORDED`."""
    columns = [counts[f"{kind}, {column}"]["waits"] for column in COLUMNS]
    rows = [
        (place, *(column.get(place, 0) for column in columns))
        for place in sorted({place for column in columns for place in column})
    ]
    rows.append(("all", *(sum(column.values()) for column in columns)))
    heads = (("where", *COLUMNS), ("---",) * (1 + len(COLUMNS)))
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in (*heads, *rows))


def recorded(kind: str) -> str:
    return RECORDED.read_text().split(f"## {kind}\n\n")[1].split("\n\n")[0].rstrip("\n") + "\n"


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_where_it_is_recorded_to(kind: str, counts: dict[str, Any]) -> None:
    assert table(kind, counts) == recorded(kind)


def test_a_wait_in_the_ascent_turns_the_count_red(
    faulty: dict[str, Any], counts: dict[str, Any]
) -> None:
    name, run = "masked_lm, exact", faulty["wait in the ascent"]
    assert table("masked_lm", {**counts, name: run}) != recorded("masked_lm")
    assert sum(run["waits"].values()) == waits(counts, name) + 1


def waits(counts: dict[str, Any], name: str) -> int:
    return sum(counts[name]["waits"].values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["exact", "low memory", "half of the batch"])
def test_the_host_waits_no_more_than_in_stocks_update(
    counts: dict[str, Any], kind: str, mode: str
) -> None:
    mine = f"{kind}, {mode}"
    assert waits(counts, mine) <= waits(counts, f"{kind}, stock"), counts[mine]["waits"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", ["exact", "low memory"])
def test_steps_of_the_ascent_wait_for_nothing(
    counts: dict[str, Any], kind: str, memory: str
) -> None:
    assert counts[f"{kind}, {memory}, K=3"]["waits"] == counts[f"{kind}, {memory}"]["waits"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_update_launches_less_than_twice_what_stocks_does(
    counts: dict[str, Any], kind: str
) -> None:
    ratio = counts[f"{kind}, exact"]["launches"] / counts[f"{kind}, stock"]["launches"]
    assert 1 < ratio <= 1.8
