"""The report of alum-robustness: its numbers, and what is written of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from scipy import stats

from alum_fairseq import UsageError
from alum_fairseq.problems import Classification, MultipleChoice, Regression
from alum_fairseq.robustness.attacks.greedy import Limits
from alum_fairseq.robustness.attacks.pgd import ProjectedGradient
from alum_fairseq.robustness.parts.adversarial_set import AdversarialSetPart
from alum_fairseq.robustness.parts.clean import Clean, only_answers
from alum_fairseq.robustness.parts.embeddings import L2Attack, LInfAttack
from alum_fairseq.robustness.parts.greedy import Misspellings, Source
from alum_fairseq.robustness.parts.noise import Noise
from alum_fairseq.robustness.parts.part import Records
from alum_fairseq.robustness.parts.smoothness import Smoothness
from alum_fairseq.robustness.parts.textattack import TextAttack
from alum_fairseq.robustness.parts.textbugger import TextBugger
from alum_fairseq.robustness.report.compare import joined
from alum_fairseq.robustness.report.publish import escaped, write_report
from alum_fairseq.robustness.report.summary import build_report
from alum_fairseq.robustness.report.wording import (
    conclusions,
    glance,
    in_lines,
    table,
    visible,
    warnings_in_lines,
)
from alum_fairseq.robustness.types import Example

PARTS = [
    Clean(),
    Noise((0.1, 0.2, 0.4), 1, None),
    LInfAttack(ProjectedGradient("linf"), 1),
    L2Attack(ProjectedGradient("l2"), 1),
    Smoothness(0.1, 1),
    AdversarialSetPart([], variant="anli"),
    Misspellings(1, None, Limits()),
    TextAttack(1, None, 200, variant="DeepWordBugGao2018"),
]
WORDS = ["the", "film", "was", "a", "quiet", "slow", "and", "rather", "moving", "story", "about"]
HOSTILE = (
    "<script>alert(1)</script> a|b `c` *d* _e_ [f](g) $h$ &amp; \u202eabc\u202c "
    "\u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f680\nnext"
)
CEILING = 4.0


def synthetic(
    kind: str = "classification",
    labels: tuple[str, ...] = ("negative", "positive"),
    models: Mapping[str, int] | None = None,
    examples: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """What a run hands over to build_report, of models of which later ones are more robust."""
    models = models or {"plain": 2, "alum": 2}
    rng = np.random.default_rng(seed)
    known = [one_example(kind, labels, number, rng) for number in range(examples)]
    few = known[: examples // 2]
    measured = {
        **dict.fromkeys(("clean", "noise", "linf", "l2", "smoothness", "set:anli"), known),
        **dict.fromkeys(("greedy", "textattack:DeepWordBugGao2018"), few),
    }
    # What makes an example hard is the same for all models.
    hard = rng.normal(size=examples)
    records: dict[str, list[list[dict[str, Any]]]] = {part: [] for part in measured}
    for strength, count in enumerate(models.values()):
        for _ in range(count):
            one = checkpoint(kind, labels, measured, hard, 1 + 0.6 * strength, rng)
            for part, found in one.items():
                records[part].append(found)
    return {
        "data": {
            "source": "dev.tsv",
            "examples": examples,
            "kind": kind,
            "labels": list(labels) if kind == "classification" else None,
            "tolerance": 0.5 if kind == "regression" else None,
        },
        "models": [
            {
                "name": name,
                "checkpoints": [{"path": f"{name}/{k}.pt", "sha256": "0f" * 32} for k in range(n)],
            }
            for name, n in models.items()
        ],
        "parts": list(PARTS),
        "examples": measured,
        "records": records,
        "settings": {"radii": [0.01, 0.03, 0.1], "restarts": 2, "rates": [0.1, 0.2, 0.4]},
        "versions": {"alum_fairseq": "0.1.0", "torch": "2.13.0"},
        "seconds": {f"{name} 1": {"clean": 1.5, "linf": 60.25} for name in models},
        "created": "2026-01-01T00:00:00",
        "resamples": 200,
    }


def report_of(**given: Any) -> dict[str, Any]:
    """The report of a run, of which ``examples`` and ``records`` are mappings by part."""
    examples = given.pop("examples")
    kind, labels = given["data"]["kind"], tuple(given["data"]["labels"] or ())
    problem = {
        "classification": Classification(labels),
        "regression": Regression(tolerance=0.5),
        "choices": MultipleChoice(("0", "1")),
    }[kind]
    records = {
        part: Records(problem, examples[part], found) for part, found in given["records"].items()
    }
    parts = [part for part in given.pop("parts") if part.name in records]
    return build_report(**{**given, "parts": parts, "records": records})


def one_example(
    kind: str, labels: tuple[str, ...], number: int, rng: np.random.Generator
) -> Example:
    texts = tuple(" ".join(rng.choice(WORDS, 12)) for _ in range(3 if kind == "choices" else 1))
    answer = {
        "classification": lambda: str(rng.choice(labels)),
        "regression": lambda: f"{rng.uniform(0, 5):.2f}",
        "choices": lambda: str(rng.integers(2)),
    }[kind]()
    return Example(number, texts, answer)


def checkpoint(
    kind: str,
    labels: tuple[str, ...],
    measured: Mapping[str, list[Example]],
    hard: np.ndarray,
    strength: float,
    rng: np.random.Generator,
) -> dict[str, list[dict[str, Any]]]:
    answers = list(labels) if kind == "classification" else ["0", "1"]

    def verdict(example: Example, margin: float) -> dict[str, Any]:
        right = bool(margin > 0)
        if kind == "regression":
            off = float(rng.uniform(0, 0.5) if right else rng.uniform(0.6, 2))
            found: Any = float(example.answer) + off
            return {"prediction": found, "correct": right, "confidence": None, "loss": off**2}
        wrong = [label for label in answers if label != example.answer]
        confidence = 1 / (1 + math.exp(-abs(margin)))
        return {
            "prediction": example.answer if right else str(rng.choice(wrong)),
            "correct": right,
            "confidence": max(confidence, 1 / len(answers)),
            "loss": -math.log(confidence if right else 1 - confidence),
        }

    def outcome(example: Example, clean: dict[str, Any], margin: float) -> dict[str, Any]:
        if not clean["correct"]:
            after = {**clean, "texts": list(example.texts), "edits": 0, "queries": 0}
        else:
            edits = int(rng.integers(1, 4))
            words = example.texts[0].split()
            for place in rng.choice(len(words), edits, replace=False):
                words[place] = words[place][::-1] + "x"
            texts = [" ".join(words), *example.texts[1:]]
            queries = int(rng.integers(5, 60))
            after = {**verdict(example, margin), "texts": texts, "edits": edits, "queries": queries}
            if after["correct"]:
                after |= {"texts": list(example.texts), "edits": 0}
        del after["loss"]
        return after

    def epsilon(example: Example, clean: dict[str, Any]) -> dict[str, Any]:
        found: float | None = 0.0
        if clean["correct"]:
            found = 0.03 * strength * float(rng.lognormal())
        other = verdict(example, -1)["prediction"]
        return {
            "epsilon": found,
            "lower": found * 0.9,
            "prediction": other,
            "restart": int(rng.random() < 0.05),
            "random": bool(rng.random() < 0.02),
            "flat": False,
            "search": False,
        }

    margins = [2 + rng.normal() - 1.5 * hard[one.number] for one in measured["clean"]]
    clean = [verdict(*pair) for pair in zip(measured["clean"], margins, strict=True)]
    found: dict[str, list[dict[str, Any]]] = {"clean": clean, "noise": []}
    for part, examples in measured.items():
        if part in ("linf", "l2"):
            found[part] = [epsilon(one, clean[one.number]) for one in examples]
        elif part in ("greedy", "textattack:DeepWordBugGao2018"):
            found[part] = [
                outcome(one, clean[one.number], strength - 1.3 + rng.normal()) for one in examples
            ]
        elif part == "smoothness":
            found[part] = [
                {"adversarial": rng.exponential(0.2 / strength), "random": rng.exponential(0.01)}
                for _ in examples
            ]
        elif part.startswith("set:"):
            found[part] = [verdict(one, rng.normal() + 0.3 * strength) for one in examples]
    for one, margin in zip(measured["noise"], margins, strict=True):
        outcomes = {}
        for noise in ("swap", "keyboard"):
            for rate in (0.1, 0.2, 0.4):
                after = {**verdict(one, margin - 5 * rate / strength), "texts": list(one.texts)}
                outcomes[f"{noise} {rate}"] = {**after, "edits": 3, "queries": 1}
        outcomes |= {f"drop {rate}": outcomes[f"swap {rate}"] for rate in (0.1, 0.2, 0.4)}
        found["noise"].append(outcomes)
    return found


INPUTS = {
    "two models, two seeds": {},
    "a single model": {"models": {"alum": 1}},
    "three models, three classes": {
        "models": {"plain": 1, "alum": 2, "smart": 1},
        "labels": ("entailment", "neutral", "contradiction"),
    },
    "regression": {"kind": "regression"},
    "choices": {"kind": "choices", "models": {"plain": 1, "alum": 1}},
}


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    return {name: report_of(**synthetic(**given)) for name, given in INPUTS.items()}


@pytest.fixture(scope="module")
def folders(
    reports: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    found = {}
    for name, report in reports.items():
        found[name] = tmp_path_factory.mktemp("report")
        write_report(report, found[name])
    return found


def measure_of(report: dict[str, Any], key: str) -> dict[str, Any]:
    [found] = [measure for measure in report["measures"] if measure["key"] == key]
    return found


def test_numbers_are_those_of_the_records() -> None:
    given = synthetic()
    report = report_of(**given)
    clean, linf = given["records"]["clean"], given["records"]["linf"]

    accuracies = [100 * np.mean([one["correct"] for one in records]) for records in clean]
    found = measure_of(report, "clean.accuracy")["values"]
    assert found["plain"]["seeds"] == pytest.approx(accuracies[:2])
    assert found["plain"]["value"] == pytest.approx(np.mean(accuracies[:2]))
    assert found["alum"]["value"] == pytest.approx(np.mean(accuracies[2:]))
    for one in found.values():
        assert one["low"] < one["value"] < one["high"]

    left = [100 * np.mean([one["epsilon"] > 0.03 for one in records]) for records in linf]
    found = measure_of(report, "linf.accuracy.0.03")
    assert found["values"]["alum"]["value"] == pytest.approx(np.mean(left[2:]))
    [compared] = found["comparisons"]
    assert (compared["baseline"], compared["model"]) == ("plain", "alum")
    assert compared["difference"] == pytest.approx(np.mean(left[2:]) - np.mean(left[:2]), rel=1e-5)
    assert compared["low"] < compared["difference"] < compared["high"]

    attacked = given["records"]["greedy"]
    broken = [[one["edits"] > 0 for one in records] for records in attacked]
    right = [[clean[k][i]["correct"] for i in range(150)] for k in range(4)]
    rates = [100 * sum(b) / sum(r) for b, r in zip(broken, right, strict=True)]
    found = measure_of(report, "greedy.success")["values"]
    assert found["plain"]["seeds"] == pytest.approx(rates[:2], rel=1e-5)

    found = measure_of(report, "noise.0.2")["values"]["alum"]["value"]
    keys = ("swap 0.2", "drop 0.2", "keyboard 0.2")
    noise = [
        [one[key]["correct"] for one in rs for key in keys] for rs in given["records"]["noise"]
    ]
    assert found == pytest.approx(100 * np.mean(noise[2:]), rel=1e-5)

    smooth = given["records"]["smoothness"]
    gains = [
        sum(one["adversarial"] for one in rs) / sum(one["random"] for one in rs) for rs in smooth
    ]
    found = measure_of(report, "smoothness.gain")["values"]["plain"]["value"]
    assert found == pytest.approx(np.mean(gains[:2]), rel=1e-5)


def test_curves_are_those_of_the_records() -> None:
    given = synthetic()
    report = report_of(**given)
    curve = report["curves"]["l2"]
    epsilons = [np.array([one["epsilon"] for one in rs]) for rs in given["records"]["l2"]]
    assert curve["x"][0] == 0
    assert 0 < curve["x"][1] < min(e[e > 0].min() for e in epsilons)
    assert curve["x"][-1] == pytest.approx(max(e.max() for e in epsilons), rel=1e-5)
    for name, span in (("plain", slice(0, 2)), ("alum", slice(2, 4))):
        found = curve["models"][name]
        wanted = [100 * np.mean([(e > x).mean() for e in epsilons[span]]) for x in curve["x"]]
        assert found["y"] == pytest.approx(wanted, rel=1e-5)
        assert found["y"] == sorted(found["y"], reverse=True)
        bounds = zip(found["low"], found["y"], found["high"], strict=True)
        assert all(low <= y <= high for low, y, high in bounds)
        clean = measure_of(report, "clean.accuracy")["values"][name]
        assert (found["y"][0], found["low"][0]) == (clean["value"], clean["low"])

    noise = report["curves"]["noise"]
    assert noise["x"] == [0, 0.1, 0.2, 0.4]
    keys = ("swap 0.4", "drop 0.4", "keyboard 0.4")
    left = [
        np.mean([one[key]["correct"] for one in rs for key in keys])
        for rs in given["records"]["noise"]
    ]
    assert noise["models"]["plain"]["y"][-1] == pytest.approx(100 * np.mean(left[:2]), rel=1e-5)
    assert noise["models"]["plain"]["y"][0] == curve["models"]["plain"]["y"][0]


def test_all_attacks_together_are_of_the_examples_that_all_met() -> None:
    given = synthetic()
    report = report_of(**given)
    left = np.array(
        [
            [
                [np.mean([n[f"{kind} 0.2"]["correct"] for kind in ("swap", "drop", "keyboard")])
                 for n in given["records"]["noise"][k][:150]],
                [one["epsilon"] > 0.03 for one in given["records"]["linf"][k][:150]],
                [one["epsilon"] > 0.03 for one in given["records"]["l2"][k][:150]],
                [one["correct"] for one in given["records"]["greedy"][k]],
                [one["correct"] for one in given["records"]["textattack:DeepWordBugGao2018"][k]],
            ]
            for k in range(4)
        ],
        dtype=float,
    )  # fmt: skip
    for key, values in (("mean", left.mean(1)), ("worst", left.min(1))):
        found = measure_of(report, f"attacks.{key}")
        assert found["examples"] == 150
        for name, span in (("plain", slice(0, 2)), ("alum", slice(2, 4))):
            wanted = 100 * values[span].mean()
            assert found["values"][name]["value"] == pytest.approx(wanted, rel=1e-5)
    assert "Embeddings, L2, radius 0.03; " in measure_of(report, "attacks.mean")["meaning"]


def test_p_is_adjusted_for_all_comparisons(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["three models, three classes"]
    every = [one for measure in report["measures"] for one in measure["comparisons"]]
    assert len(every) == 2 * len(report["measures"])
    ranked = sorted(every, key=lambda one: one["p"])
    best = 1.0
    for rank in range(len(ranked), 0, -1):  # Benjamini and Hochberg, by the book
        best = min(best, ranked[rank - 1]["p"] * len(ranked) / rank)
        assert ranked[rank - 1]["p_adjusted"] == pytest.approx(best, rel=1e-5)
    assert all(one["p_seeds"] is None for one in every)  # one checkpoint of plain
    two = reports["two models, two seeds"]["measures"]
    assert 0 < two[0]["comparisons"][0]["p_seeds"] < 1


def test_measures_by_kind_of_task(reports: dict[str, dict[str, Any]]) -> None:
    def clean(name: str) -> list[str]:
        keys = [measure["key"] for measure in reports[name]["measures"]]
        return [key.removeprefix("clean.") for key in keys if key.startswith("clean.")]

    assert clean("two models, two seeds") == ["accuracy", "mcc", "f1", "loss", "ece"]
    assert clean("regression") == ["accuracy", "pearson", "spearman", "loss"]
    assert clean("choices") == ["accuracy", "loss", "ece"]
    assert measure_of(reports["regression"], "clean.accuracy")["title"] == "Within tolerance"
    assert measure_of(reports["regression"], "clean.pearson")["values"]["plain"]["value"] > 50
    assert reports["regression"]["reliability"] == {}
    f1 = measure_of(reports["three models, three classes"], "clean.f1")
    assert f1["title"] == "F1, mean over the classes"


def test_only_what_was_measured() -> None:
    given = synthetic(models={"alum": 1})
    given["records"] = {"clean": given["records"]["clean"]}
    report = report_of(**given)
    assert {measure["group"] for measure in report["measures"]} == {"Clean"}
    assert (report["curves"], report["examples"], report["warnings"]) == ({}, [], [])


def test_what_was_never_broken(tmp_path: Path) -> None:
    given = synthetic()
    for records in given["records"]["linf"]:
        for one in records:
            one.update(epsilon=None, lower=CEILING)
    given["parts"][2] = LInfAttack(ProjectedGradient("linf"), 1, [0.5, 2.0])
    given["parts"][3] = L2Attack(ProjectedGradient("l2"), 1, [0.01])
    report = report_of(**given)
    median = measure_of(report, "linf.median")
    assert median["values"]["alum"] == {
        "value": None,
        "low": None,
        "high": None,
        "seeds": [None] * 2,
    }
    assert median["comparisons"][0]["p"] is None
    assert measure_of(report, "linf.accuracy.2")["values"]["alum"]["value"] == 100
    assert measure_of(report, "linf.area")["values"]["alum"]["value"] == 100
    assert report["curves"]["linf"]["x"][-1] == CEILING
    assert "none found" in table(report)
    write_report(report, tmp_path)
    assert "none found" in (tmp_path / "report.html").read_text()


def test_what_was_wrong_already(tmp_path: Path) -> None:
    given = synthetic(examples=120)
    for records in given["records"]["clean"]:
        for one in records:
            one["correct"] = False
    for part in ("linf", "l2"):
        for records in given["records"][part]:
            for one in records:
                one.update(epsilon=0.0, lower=0.0)
    for records in given["records"]["greedy"]:
        for one in records:
            one.update(correct=False, edits=0, queries=0)
    report = report_of(**given)
    assert "linf" not in report["curves"]
    assert measure_of(report, "greedy.success")["values"]["alum"]["value"] is None
    assert measure_of(report, "linf.median")["values"]["alum"]["value"] is None
    write_report(report, tmp_path)


# What it comes to.


def one_pair(attacked: float, p: float, clean: float = 0.0, p_clean: float = 1.0) -> str:
    """What is said of alum and plain, where they differ by so many points with such p."""
    report = report_of(**synthetic(models={"plain": 1, "alum": 1}))
    for key, difference, adjusted in (
        ("attacks.mean", attacked, p), ("clean.accuracy", clean, p_clean),
    ):  # fmt: skip
        measure_of(report, key)["comparisons"][0].update(difference=difference, p_adjusted=adjusted)
    [both] = conclusions(report)
    return " ".join(both)


def test_conclusion_of_two_models() -> None:
    said = one_pair(12.5, 0.01)
    assert said.startswith("alum is more robust than plain: under attack alum keeps ")
    points = r"\+12\.5 points \(95% interval: .* p = 0\.010 after adjusting for all comparisons\)"
    assert re.search(rf"That is {points}, the mean over", said)
    assert "on 150 examples. Each is a single training" in said
    assert "No sure price in accuracy: on 300 unchanged examples it is " in said
    assert one_pair(-3, 0.049).startswith("alum is less robust than plain: ")
    unsure = one_pair(12.5, 0.05)
    assert unsure.startswith("It is not sure which of alum and plain is more robust: under attack")
    assert "p = 0.050 after adjusting for all comparisons, which may be chance)" in unsure
    assert " The price in accuracy: on " in one_pair(12.5, 0.01, -2, 0.03)
    assert " No price in accuracy: on " in one_pair(12.5, 0.01, 2, 0.03)


def test_conclusions_of_others(reports: dict[str, dict[str, Any]]) -> None:
    [(sentence, ground)] = conclusions(reports["a single model"])
    assert re.fullmatch(r"Under attack alum keeps \d\d\.\d% right answers\.", sentence)
    assert "on 300 unchanged examples" in ground
    two = conclusions(reports["three models, three classes"])
    assert [sentence.split()[0] for sentence, _ in two] == ["alum", "smart"]
    assert "Over the seeds of training, p = " in conclusions(reports["two models, two seeds"])[0][1]
    assert " plain is a single training: another may give another result." in two[0][1]
    assert " Each is a single training: " in two[1][1]
    given = synthetic(models={"plain": 2, "alum": 2})
    for each in given["records"].values():
        each[1::2] = each[::2]
    assert " The seeds of training of each give the same. " in conclusions(report_of(**given))[0][1]
    given = synthetic(models={"plain": 1, "alum": 1})
    given["records"] = {"clean": given["records"]["clean"]}
    report = report_of(**given)
    assert conclusions(report)[0][0].startswith("alum and plain were not attacked")
    assert max(map(len, in_lines(reports["two models, two seeds"]).splitlines())) <= 100


def test_the_glance_does_not_choose_by_the_result() -> None:
    report = report_of(**synthetic(models={"plain": 1, "alum": 1}))
    linf = [one for one in report["measures"] if one["key"].startswith("linf.accuracy")]
    for surest in range(3):
        for place, measure in enumerate(linf):
            measure["comparisons"][0]["p_adjusted"] = 0.01 if place == surest else 0.5
        shown = [one for one in glance(report) if one["key"].startswith("linf")]
        assert [one["key"] for one in shown] == ["linf.accuracy.0.03"]  # the middle radius
    groups = [one["group"] for one in glance(report)]
    assert len(groups) == len(set(groups)) == 8


def test_no_p_below_its_level_beside_an_interval_with_zero(
    reports: dict[str, dict[str, Any]],
) -> None:
    every = [o for r in reports.values() for m in r["measures"] for o in m["comparisons"]]
    assert {one["p"] < 0.05 for one in every} == {True, False}
    for one in every:
        assert (one["p"] < 0.05) == (not one["low"] <= 0 <= one["high"])


def every_number(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for one in value.values() for number in every_number(one)]
    if isinstance(value, list):
        return [number for one in value for number in every_number(one)]
    return [value] if isinstance(value, float) else []


def test_json_is_strict_rounded_and_the_same_again(
    reports: dict[str, dict[str, Any]], folders: dict[str, Path]
) -> None:
    for name, report in reports.items():
        text = (folders[name] / "report.json").read_text()
        assert json.loads(text, parse_constant=pytest.fail) == report
        assert all(number == float(f"{number:.6g}") for number in every_number(report))
    later = synthetic() | {"created": "2027-02-02T00:00:00", "seconds": {}}
    again = report_of(**later)
    first = reports["two models, two seeds"]
    assert {**again, "time": None} == {**first, "time": None}
    assert report_of(**later, seed=2) != again


def test_same_report_same_bytes(
    reports: dict[str, dict[str, Any]], folders: dict[str, Path], tmp_path: Path
) -> None:
    name = "two models, two seeds"
    write_report(json.loads(json.dumps(reports[name])), tmp_path / "new" / "folder")
    files = sorted(path.name for path in folders[name].iterdir())
    assert files == sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    pictures = ["overview", "linf", "l2", "noise", "reliability"]
    wanted = ["report.html", "report.json", "report.md"]
    assert files == sorted([*wanted, *(f"{p}.{kind}" for p in pictures for kind in ("png", "svg"))])
    for file in files:
        content = (tmp_path / "new" / "folder" / file).read_bytes()
        assert content == (folders[name] / file).read_bytes(), file


def test_only_reports_of_like_attacks_and_sets_are_compared(tmp_path: Path) -> None:
    given = synthetic(models={"alum": 1}, examples=60) | {"resamples": 10}
    report = report_of(**given)
    report["data"] |= {"sha256": "x", "attacked": 30}

    def compared(others: Mapping[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        """The report, and the same with other settings, and other ones of some parts."""
        first = {**report, "settings": {"seed": 1, "radii": [0.01, 0.03, 0.1], **settings}}
        again = {**report, "settings": {"seed": 1, "radii": [0.1, 0.03, 0.01]}}
        again["parts"] = {**report["parts"], **(others or {})}
        paths = [tmp_path / "first.json", tmp_path / "again.json"]
        for path, each in zip(paths, (first, again), strict=True):
            path.write_text(json.dumps(each))
        return joined(paths)

    def of_set(content: str, **more: Any) -> dict[str, Any]:
        examples = [Example(0, (content,), "positive", **more)]
        return {"set:anli": AdversarialSetPart(examples, variant="anli").settings}

    def of_file(path: str, sha256: str = "0") -> dict[str, Any]:
        synonyms = Source("--synonyms", path, sha256)
        return TextBugger(1, None, Limits(), synonyms=synonyms).settings

    assert compared()["parts"] == report["parts"]
    radii = r"different settings: radii \(\[0.01, 0.03, 0.1\] and \[0.03, 0.1, 1\]\) of linf, l2$"
    with pytest.raises(UsageError, match=radii):
        compared(radii=[0.1, 1, 0.03])
    with pytest.raises(UsageError, match=r"null_threshold \(None and 5.0\) of clean"):
        compared(null_threshold=5.0)
    report["parts"] |= of_set("R1")
    compared(of_set("R1"))
    for other in (of_set("R3"), of_set("R1", accepted=("positive", "negative"))):
        with pytest.raises(UsageError, match=r"examples \(1 of SHA-256 \w{16} and .* of set:anli"):
            compared(other)
    # Where a file lies is no setting; what is in it is.
    report["parts"]["greedy"] = of_file("a/synonyms.tsv")
    compared({"greedy": of_file("b/synonyms.tsv")})
    with pytest.raises(UsageError, match=r"synonyms.sha256 \(1 and 0\) of greedy"):
        compared({"greedy": of_file("a/synonyms.tsv", "1")})
    for part in ("linf", "l2"):  # then radii say nothing
        del report["parts"][part]
    compared(radii=[0.5])


def test_folder_that_cannot_be_written(reports: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(reports["a single model"], tmp_path / "file" / "folder")


def test_of_all_right_or_none_the_intervals_are_exact() -> None:
    """Also of a difference of two such shares, and of what only some of the examples count for."""
    given = synthetic(models={"plain": 1, "alum": 1}, examples=64)
    clean, greedy = given["records"]["clean"], given["records"]["greedy"]
    for one in (*clean[0], *clean[1]):
        one["correct"] = True
    for number, records in enumerate(greedy):
        for place, one in enumerate(records):
            # plain keeps nothing, alum everything, but 12 of the 32 were wrong to begin with
            one.update(correct=number == 1 and place >= 12, edits=int(number == 0))
    for one in given["records"]["linf"][0]:
        one["epsilon"] = 0.0
    report = report_of(**given)

    def bounds(key: str, name: str = "alum") -> list[float]:
        found = measure_of(report, key)["values"][name]
        return [found["low"], found["high"]]

    def exact(hits: int, examples: int) -> Any:
        found = stats.binomtest(hits, examples).proportion_ci(0.95, "exact")
        return pytest.approx([100 * found.low, 100 * found.high], rel=1e-5)

    assert bounds("clean.accuracy") == exact(64, 64)
    assert bounds("greedy.accuracy", "plain") == exact(0, 32)
    assert bounds("greedy.success", "plain") == exact(32, 32)
    assert bounds("greedy.success") == exact(0, 20)
    assert bounds("linf.area", "plain") == bounds("linf.accuracy.0.03", "plain") == exact(0, 64)
    curve = report["curves"]["linf"]["models"]["plain"]
    assert [curve["low"][1], curve["high"][1]] == exact(0, 64)
    assert bounds("clean.ece")[0] > 0  # no share: as it was
    [same] = measure_of(report, "clean.accuracy")["comparisons"]
    assert (same["difference"], same["p"]) == (0, 1)
    assert [same["low"], same["high"]] == pytest.approx([-5.6, 5.6], abs=0.05)
    [other] = measure_of(report, "greedy.success")["comparisons"]
    assert other["difference"] == -100
    assert [other["low"], other["high"]] == pytest.approx([-100, -72.3], abs=0.05)
    assert other["p"] < 0.05


# Warnings.


def spoilt(part: str, share: float, **values: Any) -> dict[str, Any]:
    """Records of which a share of those of the model alum, as far as it was right, are changed."""
    given = synthetic(models={"plain": 1, "alum": 1})
    records = [one for one in given["records"][part][1] if one.get("epsilon") != 0]
    for one in records[: math.ceil(share * len(records))]:
        one.update(values)
    return given


def quiet(report: dict[str, Any]) -> list[str]:
    return [one for one in report["warnings"] if "single checkpoint" not in one]


@pytest.mark.parametrize(
    ("part", "too_many", "few", "values", "said"),
    [
        ("linf", 0.15, 0.05, {"random": True}, "one of ten random perturbations"),
        ("l2", 0.25, 0.1, {"restart": 1}, "broken best by the first restart"),
        ("linf", 0.03, 0.002, {"flat": True}, "no usable gradient"),
        ("linf", 0.03, 0.002, {"search": True}, "broken by a random search without gradients"),
        ("clean", 0.001, 0, {"steady": False}, "asked twice, it answers"),
        ("l2", 0.001, 0, {"epsilon": None}, "not broken at any radius"),
        ("greedy", 0.2, 0.05, {"queries": 1, "edits": 0, "correct": True}, "nothing to try"),
        ("smoothness", 1, 0.5, {"adversarial": 0.011, "random": 0.01}, "1.1 times as far"),
        ("clean", 1, 0.9, {"prediction": "positive"}, "predicts positive for every example"),
    ],
)
def test_warnings(
    part: str, too_many: float, few: float, values: dict[str, Any], said: str
) -> None:
    [warning] = quiet(report_of(**spoilt(part, too_many, **values)))
    assert said in warning
    assert warning.startswith("alum, ") or warning.startswith("alum: ")
    assert quiet(report_of(**spoilt(part, few, **values))) == []


def test_noise_that_changes_nothing_is_warned_of() -> None:
    given = synthetic(models={"plain": 1, "alum": 1})
    noise = given["records"]["noise"][1]
    for count, said in (
        (30, []),
        (31, ["drop 10%, keyboard 10%, swap 10%, keyboard 40%"]),
    ):  # of 300
        for record in noise[:count]:
            for each in ("swap 0.1", "keyboard 0.1", "keyboard 0.4"):
                record[each]["edits"] = 0
        found = quiet(report_of(**given))
        assert len(found) == len(said)
        for warning, kinds in zip(found, said, strict=True):
            wanted = "alum, noise: more than a tenth of the examples had nothing to misspell for "
            assert warning.startswith(f"{wanted}{kinds} (too few words")


@pytest.mark.parametrize(
    ("kind", "predictions", "only"),
    [
        ("classification", ["a", "a"], "a"),
        ("classification", ["a", "b"], None),
        ("classification", ["a"], None),  # a single example
        ("sequence_tagging", ["O O", "O"], "O"),
        ("sequence_tagging", ["O B-x", "O"], None),
        ("span_prediction", ["", ""], ""),
    ],
)
def test_the_only_answer(kind: str, predictions: list[str], only: str | None) -> None:
    found = [{"prediction": prediction} for prediction in predictions]
    problem = SimpleNamespace(name=kind)
    examples = [Example(i, ("",), str(i)) for i in range(len(found))]
    assert only_answers(Records(problem, examples, [found])) == [only]
    alike = [replace(example, answer="O O") for example in examples]
    assert only_answers(Records(problem, alike, [found])) == [None]


def test_examples_with_one_right_answer_are_warned_of_and_no_model_is_blamed() -> None:
    given = spoilt("clean", 1, prediction="positive")
    for part, examples in given["examples"].items():
        given["examples"][part] = [replace(one, answer="positive") for one in examples]
    report = report_of(**given)
    [warning] = quiet(report)
    assert warning.startswith("All examples have the same right answer (positive): ")
    assert [model["constant"] for model in report["models"]] == [False, False]
    assert "knows nothing" not in conclusions(report)[0][0]


def test_a_model_knows_nothing_if_all_its_seeds_give_one_answer() -> None:
    given = synthetic(models={"plain": 1, "alum": 3})
    for collapsed in (1, 2, 3):
        for one in given["records"]["clean"][collapsed]:
            one["prediction"] = "positive"
        report = report_of(**given)
        assert report["models"][1]["constant"] == (collapsed == 3)
        assert ("knows nothing" in conclusions(report)[0][0]) == (collapsed == 3)
        said = [f"alum, checkpoint {number}: predicts" for number in range(1, collapsed + 1)]
        assert [one.partition(" positive")[0] for one in quiet(report)] == said


@pytest.mark.parametrize("compared", [False, True])
def test_what_never_changes_its_answer_is_called_neither_robust_nor_not(compared: bool) -> None:
    given = spoilt("clean", 1, prediction="positive")
    if not compared:
        given["models"] = given["models"][1:]
        given["records"] = {part: each[1:] for part, each in given["records"].items()}
    report = report_of(**given)
    [(sentence, _)] = conclusions(report)
    said = "alum knows nothing: it gives one answer to every example"
    assert sentence.startswith(f"{said}: under" if compared else f"{said}. Under attack alum keeps")
    assert "robust" not in sentence
    assert [model["constant"] for model in report["models"]] == [False, True][not compared :]
    assert warnings_in_lines(report)[-1].startswith("Warning: alum, checkpoint 1: predicts")


def test_warnings_of_little_evidence(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["two models, two seeds"]["warnings"] == []
    assert any("single checkpoint" in one for one in reports["choices"]["warnings"])
    warnings = report_of(**synthetic(examples=198))["warnings"]
    assert len(warnings) == 1
    assert warnings[0].endswith(": misspellings (99), DeepWordBugGao2018 (99).")


# Worst examples.


def test_worst_examples() -> None:
    given = synthetic()
    report = report_of(**given)
    found = [
        one for one in report["examples"] if (one["attack"], one["model"]) == ("greedy", "plain")
    ]
    assert len(found) == 20
    order = [(one["edits"], -one["original"]["confidence"]) for one in found]
    assert order == sorted(order)
    assert len({one["number"] for one in found}) == 20
    examples, records = given["examples"]["greedy"], given["records"]
    least = min(
        (attacked["edits"], -records["clean"][k][i]["confidence"], i)
        for k in (0, 1)
        for i, attacked in enumerate(records["greedy"][k])
        if records["clean"][k][i]["correct"] and not attacked["correct"]
    )
    first = found[0]
    assert first["number"] == least[2]
    assert first["original"]["texts"] == list(examples[least[2]].texts)
    assert first["original"]["prediction"] == first["answer"] != first["attacked"]["prediction"]


# What is written.


class Page(HTMLParser):
    """Checks that all that is opened is closed, and collects what is there."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "td" in self.open:
            self.cells[-1] += data + " "


@pytest.mark.parametrize("name", INPUTS)
def test_page_is_whole_accessible_and_alone(name: str, folders: dict[str, Path]) -> None:
    found = Page((folders[name] / "report.html").read_text())
    names = [tag for tag, _ in found.tags]
    assert "script" not in names
    assert "link" not in names
    assert names.count("h1") == 1
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.tags:
        if tag == "th":
            assert attributes["scope"] in ("row", "col", "rowgroup")
        if tag == "svg":
            assert attributes["aria-label"]
            assert "width" not in attributes
        for attribute in ("src", "href", "xlink:href"):
            assert attributes.get(attribute, "#").startswith("#")
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        for reference in re.findall(
            r"url\(#([^)]*)\)", " ".join(filter(None, attributes.values()))
        ):
            assert reference in ids


@pytest.mark.parametrize("name", INPUTS)
def test_pictures_are_whole(name: str, folders: dict[str, Path]) -> None:
    for path in folders[name].glob("*.svg"):
        texts = "".join(ElementTree.parse(path).getroot().itertext())
        for model in INPUTS[name].get("models", {"plain": 2, "alum": 2}):
            assert model in texts
        assert (path.with_suffix(".png")).read_bytes().startswith(b"\x89PNG")


def worded(report: dict[str, Any]) -> set[str]:
    """Every number of the measures, as it may be written."""
    found = set()
    for measure in report["measures"]:
        values = [*measure["values"].values(), *measure["comparisons"]]
        numbers = [
            number
            for value in values
            for key in ("value", "low", "high", "difference")
            for number in [value.get(key)]
            if number is not None
        ]
        numbers += [n for value in measure["values"].values() for n in value["seeds"]]
        found.add(f"{measure['examples']:,}")  # in the leaderboard
        for number in numbers:
            percent = measure["unit"] == "%"
            digits = [1] if percent else range(8)
            found |= {f"{abs(number):.{places}f}" for places in digits}
        for one in measure["comparisons"]:
            found |= {f"{one[p]:.3f}" for p in ("p_adjusted", "p_seeds") if one[p] is not None}
    return found | {"0.001"}


NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.mark.parametrize("name", INPUTS)
def test_every_number_is_one_of_the_report(
    name: str, reports: dict[str, dict[str, Any]], folders: dict[str, Path]
) -> None:
    report = reports[name]
    known = worded(report)
    page = Page((folders[name] / "report.html").read_text())
    count = len(report["measures"]) * (3 * len(report["models"]) - 2)
    cells = page.cells[: count - len(report["measures"]) * (len(report["models"]) - 1)]
    assert len(NUMBER.findall(" ".join(cells))) > len(cells)
    assert set(NUMBER.findall(" ".join(cells))) <= known
    text = (folders[name] / "report.md").read_text()
    text = text[text.index("## Measures") : text.index("## Pictures")]
    rows = [line.split(" | ", 1)[1] for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > len(report["measures"])
    names = {model["name"] for model in report["models"]}
    rows = [row for row in rows if not any(row.startswith(f"{one} |") for one in names)]
    assert set(NUMBER.findall(" ".join(rows))) <= known
    for measure in report["measures"]:
        for value in measure["values"].values():
            if measure["unit"] == "%":
                assert f"{value['value']:.1f}" in text
                assert f"{value['value']:.1f}" in page.text


def test_hostile_texts(tmp_path: Path) -> None:
    given = synthetic(labels=("fine", HOSTILE), models={HOSTILE: 1, "_b\x1b[31m": 1}, examples=120)
    given["examples"] = {
        part: [
            Example(one.number, (f"{one.texts[0]} {HOSTILE}", HOSTILE), one.answer)
            for one in examples
        ]
        for part, examples in given["examples"].items()
    }
    for records in given["records"]["greedy"]:
        for one in records:
            one["texts"] = [f"{one['texts'][0]} {HOSTILE}", HOSTILE[1:]]
    given["records"][f"set:{HOSTILE}"] = given["records"].pop("set:anli")
    given["examples"][f"set:{HOSTILE}"] = given["examples"].pop("set:anli")
    given["parts"].append(AdversarialSetPart([], variant=HOSTILE))
    given["data"]["source"] = given["settings"][HOSTILE] = HOSTILE
    given["models"][0]["checkpoints"][0]["path"] = HOSTILE
    del given["records"]["textattack:DeepWordBugGao2018"]
    report = report_of(**given)
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report

    shown = visible(HOSTILE)
    assert "<U+202E>" in shown
    page = Page((tmp_path / "report.html").read_text())
    names = {tag for tag, _ in page.tags}
    assert "script" not in names
    assert shown in page.text
    assert "\u202e" not in page.text

    text = (tmp_path / "report.md").read_text()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or []]
    kinds = {child.type for child in inline}
    strong = {"strong_open", "strong_close"}
    assert kinds <= {"text", "text_special", "html_inline", "image", "softbreak", *strong}
    html = {child.content for child in inline if child.type == "html_inline"}
    assert html <= {"<b>", "</b>", "<br>"}
    assert {token.content for token in tokens if token.type == "html_block"} == set()
    whole = [
        "".join(child.content for child in token.children)
        for token in tokens
        if token.type == "inline"
    ]
    assert shown in whole  # the setting's name, in a cell of its own
    widths = {len(line.split(" | ")) for line in text.splitlines() if line.startswith("| Accuracy")}
    assert widths == {5}
    assert "\x1b" not in table(report)
    for path in tmp_path.glob("*.svg"):
        assert shown[:20] in "".join(ElementTree.parse(path).getroot().itertext())


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "1. one",
        "- a",
        "+ a",
        "# a",
        "http://a.bc www.a.bc https://x",
        "a\\|b",
        "&lt;",
        "![x](y)",
        "~~a~~",
        "***",
        "---",
        "> a",
        "`` ` ``",
    ],
)
def test_escaped_text_is_text(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    opened, inline, closed = parser.parse(escaped(text))
    assert (opened.type, closed.type) == ("paragraph_open", "paragraph_close")
    assert "".join(child.content for child in inline.children) == visible(text)
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    table_of = parser.parse(f"| a | b |\n| --- | --- |\n| {escaped(text)} | b |\n")
    cells = [token for token in table_of if token.type == "td_open"]
    assert len(cells) == 2


def test_bare_addresses_are_no_links() -> None:
    # GitHub makes links of what looks like one: http:// and www. must not stand there as such.
    assert not re.search(r"https?://|www\.", escaped("see http://a.bc or www.a.bc"))


def test_table_fits_a_terminal(reports: dict[str, dict[str, Any]]) -> None:
    for name, report in reports.items():
        lines = table(report).splitlines()
        assert max(map(len, lines)) <= 100, name
        assert len(lines) == 3 + len(report["measures"]) + len(
            {measure["group"] for measure in report["measures"]}
        )
    two = table(reports["two models, two seeds"])
    assert re.search(r"^  Accuracy \(%\) +\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", two, re.MULTILINE)
    assert re.search(r"^  Accuracy, radius 0.03 .* 0\.0\d\d$", two, re.MULTILINE)
    assert "better" not in two  # it has p
    three = table(reports["three models, three classes"])
    assert re.search(r"^  Accuracy, radius 0.03 .* better \d", three, re.MULTILINE)
    assert "*" not in two + three
