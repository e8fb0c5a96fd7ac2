"""A user's own norm, divergence, method and problem type, each one file outside of the package."""

from __future__ import annotations

from pathlib import Path

from support.quick_train import mlm_options, start
from support.tools import json_log

FILES = {
    "__init__.py": """\
from . import divergence, method, norm, problem
""",
    "norm.py": """\
from alum_fairseq.adversarial.norms import L2, NORMS


class Doubled(L2):
    def size(self, x):
        return 2 * super().size(x)

    def unit(self, rms, coordinates):
        return 2 * super().unit(rms, coordinates)


NORMS["mine"] = Doubled
""",
    "divergence.py": """\
from alum_fairseq.adversarial.divergences import DIVERGENCES, Divergence


def squared_difference(p, q):
    print("the divergence is mine")
    return (p.softmax(-1) - q.softmax(-1)).square().sum(-1)


DIVERGENCES["mine"] = Divergence(squared_difference, symmetric=True)
""",
    "method.py": """\
import math

from alum_fairseq import PRESETS, Preset
from alum_fairseq.adversarial.methods import METHODS
from alum_fairseq.adversarial.regularize import Regularize


class FiveBitsMore(Regularize):
    def adversarial_loss(self, update, clean, delta, logits):
        bits = 5 * math.log(2) * len(logits)
        return super().adversarial_loss(update, clean, delta, logits) + bits


METHODS["mine"] = FiveBitsMore
PRESETS["mine"] = Preset(method="mine")
""",
    "problem.py": """\
from fairseq.criterions import register_criterion

from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.problems.problem import Problem, register_problem


@register_problem
class Mine(Problem):
    name = "mine"

    def logits(self, outputs):
        print("the problem is mine")
        return super().logits(outputs)


@register_criterion("mine", dataclass=AlumMlmConfig)
class MyCriterion(AlumMlm):
    name = "mine"

    @classmethod
    def problem_of(cls, cfg):
        return Mine()
""",
}


def test_each_is_registered_by_one_file_and_trains(mlm_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my_adversary"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    options = {"user_dir": folder, "max_update": 2, "no_save": True}

    def train(name: str, **chosen: str) -> str:
        command = mlm_options(mlm_data, tmp_path / "save", **options, **chosen)
        return start(command, tmp_path / name).wait()

    mine = {"criterion": "mine", "alum_preset": "mine", "alum_divergence": "mine"}
    output = train("mine", **mine, alum_norm="mine")
    for setting in ("preset=mine", "method=mine", "divergence=mine", "norm=mine"):
        assert f" {setting} " in output
    assert "the divergence is mine" in output
    assert "the problem is mine" in output
    updates = json_log(output, "train_inner")
    assert len(updates) == 2
    assert all(5 <= float(update["adv_loss"]) < 6 for update in updates)

    euclidean = json_log(train("euclidean", **mine), "train_inner")
    assert float(updates[0]["adv_norm"]) > 1.9 * float(euclidean[0]["adv_norm"])
    unknown = start(
        mlm_options(mlm_data, tmp_path / "save", **options, alum_norm="yours"), tmp_path / "unknown"
    )
    assert "--alum-norm is 'yours': it must be one of linf, l2, mine" in unknown.wait(check=False)
