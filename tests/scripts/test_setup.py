"""scripts/setup.sh in an environment that has fairseq, whose pip writes down what it is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in "-m pip"*) echo "$*" >>{tmp_path}/pip; exit ;;\n'
        f"*sys.prefix*) echo {tmp_path}; exit ;; esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return tmp_path


def set_up(environment: Path, *words: str) -> tuple[int, str, str]:
    """Exit status, what was said, and what pip was told."""
    log = environment / "pip"
    log.write_text("")
    path = f"{environment}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "scripts/setup.sh", *words],
        env={**os.environ, "VIRTUAL_ENV": str(environment), "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout, log.read_text()


def names(told: str) -> set[str]:
    return set(re.findall(r"([\w-]+)>=", told))


def test_an_environment_of_the_users_gets_what_the_plugin_needs(environment: Path) -> None:
    status, said, told = set_up(environment)
    assert status == 0, said
    requires = (ROOT / "setup.py").read_text().partition("install_requires=[")[2].partition("]")[0]
    assert names(told) == names(requires) - {"numpy"}  # fairseq brings it
    assert "torch" not in told.replace("alum", "")
    assert set_up(environment)[2] == ""  # the second time there is nothing to do
    status, _, told = set_up(environment, "--tests")
    assert status == 0
    assert {"pytest", "ruff", "foolbox", "transformers"} <= names(told)


def test_another_word_is_refused(environment: Path) -> None:
    status, said, told = set_up(environment, "--test")
    assert (status, told) == (2, "")
    assert said == "setup: --test is unknown: it must be --tests, or nothing\n"
