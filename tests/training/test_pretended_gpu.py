"""Updates on a pretended GPU: what they launch, and how often the host waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support.places import ROOT

KINDS = ("masked_lm", "sentence_prediction")


@pytest.fixture(scope="module")
def counts() -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "support.counted_updates"],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def waits(counts: dict[str, Any], name: str) -> int:
    return sum(counts[name]["waits"].values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", ["exact", "low memory"])
def test_the_host_waits_no_more_than_in_stocks_update(
    counts: dict[str, Any], kind: str, memory: str
) -> None:
    mine = f"{kind}, {memory}"
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
