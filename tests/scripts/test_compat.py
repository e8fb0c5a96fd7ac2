"""Old checkpoints load, hostile ones do not run; a missing fairseq is explained."""

from __future__ import annotations

import argparse
import errno
import io
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data.iterators import BufferedIterator
from fairseq.file_io import PathManager
from fairseq.nan_detector import NanDetector
from support.places import PLUGIN, ROOT

from alum_fairseq import UsageError, compat


def test_a_checkpoint_with_a_namespace_loads(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    state = {"args": argparse.Namespace(arch="roberta", lr=[0.1]), "model": {"w": torch.ones(2)}}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    loaded = torch.load(path)
    assert loaded["args"].arch == "roberta"
    assert torch.equal(loaded["model"]["w"], torch.ones(2))


def test_the_plugin_by_two_paths_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``--user-dir`` names a clone, and what is imported is the installed one, or another's."""
    (tmp_path / "alum_fairseq").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/__init__.py").write_text("IMPORTED = True\n")
    with caplog.at_level("INFO"):
        utils.import_user_module(argparse.Namespace(user_dir=str(tmp_path / "alum_fairseq")))
        utils.import_user_module(argparse.Namespace(user_dir=str(PLUGIN)))
    [line] = [record.message for record in caplog.records]
    assert line.startswith(f"--user-dir {tmp_path / 'alum_fairseq'}: alum_fairseq is imported alre")
    utils.import_user_module(argparse.Namespace(user_dir=str(tmp_path / "other")))
    assert sys.modules.pop("other").IMPORTED
    with pytest.raises(FileNotFoundError):
        utils.import_user_module(argparse.Namespace(user_dir=str(tmp_path / "no/alum_fairseq")))


def test_a_checkpoint_with_a_metric_of_numpy_loads(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"best": np.float64(0.5)}, path)
    assert torch.load(path)["best"] == 0.5


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, new_format: bool) -> None:
    target = tmp_path / "owned"
    args = argparse.Namespace(arch="roberta", hidden=Payload(target))
    path = tmp_path / "hostile.pt"
    torch.save({"args": args}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert not target.exists()


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """In an interpreter that finds the plugin, torch and what lies in ``path``, path first."""
    places = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
    )


@pytest.fixture(params=["missing", "broken"])
def no_fairseq(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "fairseq").mkdir()
    error = {
        "missing": "ModuleNotFoundError(\"No module named 'fairseq'\")",
        "broken": "ValueError('mutable default for field common is not allowed')",
    }[request.param]
    (tmp_path / "fairseq" / "__init__.py").write_text(f"raise {error}\n")
    return tmp_path


def test_without_fairseq_one_message_says_which_to_install(no_fairseq: Path) -> None:
    done = run_python("import alum_fairseq; print('imported')", no_fairseq)
    assert done.returncode == 0
    assert done.stdout == "imported\n"
    assert done.stderr.count("alum_fairseq needs fairseq") == 1
    assert "fairseq-fixed==0.12.3.1" in done.stderr or "fairseq==0.12.2" in done.stderr
    code = "from alum_fairseq.requirements import require_fairseq; require_fairseq()"
    done = run_python(code, no_fairseq)
    assert done.returncode == 1
    assert "ImportError: alum_fairseq needs fairseq, which" in done.stderr


@pytest.mark.parametrize("torch_is_there", [True, False])
def test_a_command_says_it_alone(no_fairseq: Path, torch_is_there: bool) -> None:
    """As pip's scripts of the commands do it."""
    code = "import sys; sys.argv[0] = '/x/bin/alum-predict'\n"
    if not torch_is_there:
        code += "sys.modules['torch'] = None\n"
    code += "from alum_fairseq.predict.command import main; main()"
    done = run_python(code, no_fairseq)
    assert done.returncode == 1
    what = "fairseq, which" if torch_is_there else "torch, which is not installed"
    assert done.stderr.startswith(f"alum-predict: error: alum_fairseq needs {what}")
    assert len(done.stderr.splitlines()) == 1
    assert "'pip install torch numpy cython setuptools wheel' and then 'pip install" in done.stderr
    if not torch_is_there:
        done = run_python("import sys; sys.modules['torch'] = None; import alum_fairseq")
        assert "ImportError: alum_fairseq needs torch, which is not installed" in done.stderr


def test_without_fairseq_the_adversary_works(no_fairseq: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch\n"
        "from alum_fairseq import DIVERGENCES, Adversary\n"
        "from alum_fairseq.adversarial.objectives import DivergenceFromClean\n"
        "e = torch.randn(2, 3, 4); w = torch.randn(4, 5)\n"
        "predict = lambda x: torch.tanh(x @ w).mean(1)\n"
        "objective = DivergenceFromClean(predict, predict(e), DIVERGENCES['kl'])\n"
        "print(Adversary().perturb(objective, e).shape)\n"
    )
    done = run_python(code, no_fairseq)
    assert done.stdout == "torch.Size([2, 3, 4])\n", done.stderr


def test_a_loader_that_is_still_ahead_does_not_abort_the_process_at_its_end() -> None:
    code = (
        "import torch, alum_fairseq\n"
        "from fairseq.data.iterators import BufferedIterator\n"
        "endless = iter(lambda: torch.randn(300, 300) @ torch.randn(300, 300), None)\n"
        "class Source:\n"
        "    def __iter__(self): return endless\n"
        "    def __len__(self): return 10**9\n"
        "batches = BufferedIterator(5, Source())\n"
        "next(batches)\n"
        "print('done')\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_loader_that_nobody_can_ask_any_more_ends() -> None:
    batches = BufferedIterator(1, range(1000))
    assert next(batches) == 0
    thread = batches._consumer
    assert thread.is_alive()
    del batches
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_1_5.pt"
    checkpoint_utils.torch_persistent_save({"model": {"w": torch.ones(1000)}}, str(path))
    return path


def test_a_copy_of_a_checkpoint_takes_its_name_when_it_is_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = saved.with_name("checkpoint_last.pt")
    last.write_text("the one before")
    sizes = []

    def half(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        sizes.append(last.read_text())
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(shutil, "copyfile", half)
        PathManager.copy(str(saved), str(last), overwrite=True)
    assert sizes == ["the one before"]
    assert last.read_text() == "the one before"
    assert PathManager.copy(str(saved), str(last), overwrite=True)
    assert last.read_bytes() == saved.read_bytes()
    assert sorted(p.name for p in saved.parent.iterdir()) == [saved.name, last.name]


def test_a_link_to_a_checkpoint_stays_one(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere/kept.pt", tmp_path / "checkpoint_last.pt"
    target.write_text("the one before")
    link.symlink_to(target)
    assert PathManager.copy(str(saved), str(link), overwrite=True)
    assert link.is_symlink()
    assert target.read_bytes() == saved.read_bytes()


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: steps.append("written") or sync(file))
    monkeypatch.setattr(os, "rename", lambda *a: steps.append("named") or rename(*a))
    checkpoint_utils.torch_persistent_save({"model": {}}, str(tmp_path / "checkpoint_1_5.pt"))
    assert steps == ["written", "named"]


class _FullAtFirst(io.FileIO):
    """A file on a disk that is full when the first half of a checkpoint is written."""

    full = True

    def write(self, content: Any) -> int:
        if self.full and self.tell() + len(content) > 2000:
            super().write(bytes(content)[: 2000 - self.tell()])
            self.full = False
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_second_try_to_write_a_checkpoint_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat.writing, "_PAUSE", 0)
    with _FullAtFirst(tmp_path / "checkpoint.pt", "w") as file:
        checkpoint_utils._torch_persistent_save({"model": torch.arange(5000)}, file)
    assert not file.full
    found = torch.load(tmp_path / "checkpoint.pt")
    assert torch.equal(found["model"], torch.arange(5000))


@pytest.mark.parametrize("way", ["save", "copy"])
def test_a_full_disk_leaves_the_checkpoint_before_and_no_half_one(
    way: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat.writing, "_PAUSE", 0)
    last = tmp_path / "run/checkpoint_last.pt"
    last.parent.mkdir()
    last.write_text("the one before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(UsageError, match=r"checkpoint_last\.pt cannot be written: File too"):
            if way == "save":
                checkpoint_utils.torch_persistent_save({"model": torch.ones(5000)}, str(last))
            else:
                PathManager.copy(str(saved), str(last), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert last.read_text() == "the one before"
    assert list(last.parent.iterdir()) == [last]


def test_fixes_can_be_applied_twice() -> None:
    from fairseq.distributed import utils

    compat.apply()
    patched = (PathManager.copy, PathManager.rename, NanDetector.add_hooks)
    patched += (utils._broadcast_object_slow, checkpoint_utils.torch_persistent_save)
    compat.apply()
    again = (PathManager.copy, PathManager.rename, NanDetector.add_hooks)
    again += (utils._broadcast_object_slow, checkpoint_utils.torch_persistent_save)
    assert again == patched


def test_other_exceptions_are_shown_as_before() -> None:
    done = run_python("import alum_fairseq\nraise ValueError('not ours')")
    assert "Traceback" in done.stderr
    assert "ValueError: not ours" in done.stderr
    done = run_python("import alum_fairseq\nraise alum_fairseq.UsageError('epsilon is 0')")
    assert done.stderr.strip().splitlines()[-1] == "alum_fairseq: error: epsilon is 0"
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_the_package_asks_pip_for_neither_fairseq_nor_torch() -> None:
    from importlib.metadata import requires

    wanted = [r for r in requires("alum_fairseq") if "extra ==" not in r]
    assert wanted
    assert not any(r.startswith(("fairseq", "torch")) for r in wanted)
