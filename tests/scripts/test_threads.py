"""Threads are as many as cores are idle, unless the user says how many."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from alum_fairseq import cli, threads
from alum_fairseq.tasks.alum_task import AlumTask


@pytest.mark.parametrize(
    ("cores", "load", "idle"), [(8, 0.2, 8), (8, 2.6, 5), (8, 30.0, 1), (1, 0.0, 1), (2, 1.4, 1)]
)
def test_idle_cores(cores: int, load: float, idle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: cores)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    assert threads.idle_cores() == idle


def test_the_file_alone_prints_it() -> None:
    done = subprocess.run([sys.executable, "-I", threads.__file__], text=True, capture_output=True)
    assert 1 <= int(done.stdout) <= threads.cores()


@pytest.mark.parametrize("chosen", [False, True])
def test_commands_choose_and_say_so(
    chosen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "idle_cores", lambda: 2)
    monkeypatch.setattr(cli, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", "6")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        cli.choose_threads()
        assert torch.get_num_threads() == (6 if chosen else 2)
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().err
    assert said.startswith("threads: 2, since the other 4 of 6 cores are busy") != chosen


def test_training_is_advised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = "alum_fairseq.tasks.alum_task"
    monkeypatch.setattr(f"{module}.idle_cores", lambda: 1)
    monkeypatch.setattr(f"{module}.torch.get_num_threads", lambda: 2)
    caplog.set_level("INFO")
    for chosen in (True, False):
        if chosen:
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
        else:
            monkeypatch.delenv("OMP_NUM_THREADS")
        AlumTask._advise_on_threads(SimpleNamespace())
        assert ("OMP_NUM_THREADS=1 before fairseq-train" in caplog.text) != chosen
