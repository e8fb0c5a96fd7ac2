"""alum-robustness from end to end: what it measures, that it can be stopped, what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean, pstdev
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import indexed_dataset
from support.options import command_line
from support.tools import run_tool
from support.untrained import KINDS, LABELS, texts

from alum_fairseq import UsageError
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.command import main as predict
from alum_fairseq.robustness import command, runner
from alum_fairseq.robustness.store import Store

FEW = {
    **{"examples": 24, "attack_examples": 8, "noise_rates": 0.3, "max_queries": 20},
    **{"steps": 2, "restarts": 1, "resamples": 100, "cpu": True},
}
PARTS = ["clean", "noise", "greedy", "textbugger", "linf", "l2", "smoothness"]
OUTCOME = {"texts", "prediction", "correct", "confidence", "edits", "queries"}
REPORT = ["report.json", "report.md", "report.html"]
DRAWN = ("single", "regression")


# How it is run


def as_words(chosen: dict[str, Any]) -> list[str]:
    """``{"noise_rates": [0.1, 1], "cpu": True}`` as ``--noise-rates 0.1 1 --cpu``."""
    words = []
    for name, value in chosen.items():
        option = name.replace("_", "-")
        if isinstance(value, list):
            words += [f"--{option}", *map(str, value)]
        else:
            words += command_line({option: value})
    return words


def robustness(**chosen: Any) -> SimpleNamespace:
    """Run the command: its exit status, what it printed and what it said."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = command.main(as_words(chosen))
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def without_wordnet(patch: pytest.MonkeyPatch) -> None:
    """So that all machines measure the same."""

    def missing(folder: Path | None) -> None:
        raise UsageError("substitution by synonyms needs NLTK")

    patch.setattr("alum_fairseq.robustness.parts.pwws.wordnet_synonyms", missing)


def note_reports(patch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What reports are made of, in the order that they are made in."""
    noted = []
    build = command.build_report

    def build_report(**given: Any) -> dict[str, Any]:
        report = build(**given)
        found = given.pop("records")
        records = {part: each.checkpoints for part, each in found.items()}
        examples = {part: each.examples for part, each in found.items()}
        noted.append(SimpleNamespace(**given, records=records, examples=examples, report=report))
        return report

    patch.setattr(command, "build_report", build_report)
    return noted


Measure = Callable[..., SimpleNamespace]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, solved: dict[str, Any]) -> Measure:
    """Run the command on a solved case, and return what its report is made of; nothing is drawn."""
    without_wordnet(monkeypatch)
    noted = note_reports(monkeypatch)
    monkeypatch.setattr(command, "write_report", lambda report, folder: None)

    def run(kind: str = "single", **chosen: Any) -> SimpleNamespace:
        case = solved[kind]
        usual = {"path": case.path, "input": case.table, "output": tmp_path / f"out{len(noted)}"}
        done = robustness(**{**usual, **FEW, **chosen})
        assert done.status == 0, done.err
        return noted[-1]

    return run


# What it is run on


def solve(case: Any, folder: Path) -> SimpleNamespace:
    """The case with other labels: those that the model gives, but for every fifth."""
    found = Predictor.load(case.path).predict(texts(case))
    spread = pstdev(prediction.value for prediction in found) if case.kind == "regression" else 0
    rows = []
    for i, (row, prediction) in enumerate(zip(case.rows, found, strict=True)):
        wrong = i % 5 == 4
        if case.kind == "regression":
            answer: Any = prediction.value + spread * (2 if wrong else 0.01)
        else:
            names = list(prediction.probabilities)
            answer = names[(names.index(prediction.label) + wrong) % 3]
        rows.append({**row, "label": answer})
    table = folder / f"{case.kind}.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SimpleNamespace(kind=case.kind, rows=rows, table=table, data=case.data, path=case.path)


@pytest.fixture(scope="module")
def solved(cases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("solved")
    return {kind: solve(cases[kind], folder) for kind in KINDS}


@pytest.fixture(scope="module")
def measured(solved: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For every kind of task a whole run, and what its report is made of."""
    done = {}
    for kind, case in solved.items():
        folder = tmp_path_factory.mktemp("measured") / "report"
        with pytest.MonkeyPatch.context() as patch:
            without_wordnet(patch)
            noted = note_reports(patch)
            if kind not in DRAWN:  # it takes seconds
                patch.setattr("alum_fairseq.robustness.report.publish.figures", lambda report: {})
            run = robustness(path=case.path, input=case.table, output=folder, **FEW)
        assert run.status == 0, run.err
        done[kind] = SimpleNamespace(case=case, folder=folder, **vars(run), **vars(noted[0]))
    return done


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, measured: dict[str, Any]) -> Any:
    return measured[request.param]


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def values(report: dict[str, Any]) -> dict[str, float]:
    """What the first model has of each measure."""
    first = report["models"][0]["name"]
    return {one["key"]: one["values"][first]["value"] for one in report["measures"]}


# A whole run


def test_a_report_of_every_part(run: Any) -> None:
    report = strict_json((run.folder / "report.json").read_text())
    assert report == run.report
    assert list(run.records) == PARTS
    found = {one["key"].split(".")[0] for one in report["measures"]}
    assert found == {"attacks", *PARTS}
    kind = run.case.kind if run.case.kind in ("regression", "choices") else "classification"
    assert (report["data"]["kind"], report["data"]["examples"]) == (kind, 24)
    assert report["models"][0]["name"] == run.case.path.parent.name
    assert "left out: pwws: substitution by synonyms" in run.err
    assert str(run.folder / "report.html") in run.err

    pictures = [path for path in run.folder.iterdir() if path.suffix in (".png", ".svg")]
    assert len(pictures) >= (4 if run.case.kind in DRAWN else 0)
    for path in pictures:
        begin = path.read_bytes()[:100]
        assert begin.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in begin
    for title in ("Clean", "Attack on the words, misspellings", "Smoothness"):
        for text in (run.out, *((run.folder / name).read_text() for name in REPORT[1:])):
            assert title in text
    assert "\nWarning: Measured on fewer than 100 examples" in run.out
    assert max(map(len, run.out.splitlines())) <= 100


def test_records_are_as_the_report_needs_them(run: Any) -> None:
    number = (int, float)
    right = {example.number for example, record in pairs(run, "clean") if record["correct"]}
    assert 0.7 * 24 < len(right) < 24  # every fifth is not
    for _, record in pairs(run, "noise"):
        assert set(record) == {"swap 0.3", "drop 0.3", "keyboard 0.3"}
        assert all(set(outcome) == OUTCOME for outcome in record.values())
    for norm in ("linf", "l2"):
        for example, record in pairs(run, norm):
            assert (record["epsilon"] == 0) == (example.number not in right)
            assert record["epsilon"] is None or record["lower"] <= record["epsilon"]
        assert any(record["epsilon"] for _, record in pairs(run, norm))
    for example, record in pairs(run, "greedy"):
        if example.number not in right:
            assert record["texts"] == list(example.texts)
            assert (record["correct"], record["edits"], record["queries"]) == (False, 0, 0)
    for _, record in pairs(run, "smoothness"):
        assert all(isinstance(value, number) and value >= 0 for value in record.values())


def pairs(run: Any, part: str) -> Iterator[tuple[Any, Any]]:
    """The examples of a part, each with the record of the first checkpoint."""
    return zip(run.examples[part], run.records[part][0], strict=True)


def test_what_is_on_disk_is_what_was_measured(run: Any) -> None:
    """A file for each part, in whose head stands what it is."""
    found = {}
    for path in (run.folder / "work").iterdir():
        head, *lines = map(strict_json, path.read_text().splitlines())
        found[head["part"]] = [record for line in lines for record in line["records"]]
    assert sorted(found) == sorted(run.records)
    for part, [records] in run.records.items():
        assert sorted(map(json.dumps, records)) == sorted(map(json.dumps, found[part]))


@pytest.mark.parametrize("source", ["table", "binarised"])
def test_clean_numbers_are_those_of_prediction(
    case: Any, source: str, measure: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which test_predict.py shows to be those of fairseq-validate."""
    chosen = {"path": case.path, "examples": 0, "attack_examples": 1, "parts": "smoothness"}
    chosen |= {"input": case.table} if source == "table" else {"input": None, "subset": "valid"}
    found = values(measure(**chosen).report)
    columns = ["a", "b"] if case.kind == "pair" else ["a"]
    columns += ["c0", "c1", "c2"] if case.kind == "choices" else []
    options = {"path": case.path, "input": case.table, "columns": columns, "label": "label"}
    assert predict(as_words(options)) == 0
    said = capsys.readouterr().err
    names = {"clean.loss": "loss", "clean.accuracy": "accuracy"}
    if case.kind == "regression":
        names = {"clean.loss": "loss", "clean.pearson": "pearson", "clean.spearman": "spearman"}
    for ours, theirs in names.items():
        expected = float(re.search(rf"\b{theirs} (-?[\d.]+)", said)[1])
        # Prediction counts in bits, as fairseq does, and a report in nats.
        value = found[ours] / math.log(2) if theirs == "loss" else found[ours]
        assert value == pytest.approx(expected, rel=1e-4, abs=2e-3), ours


def outcomes(run: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Every text that noise and attack made, with its example."""
    noise = [(example, each) for example, found in pairs(run, "noise") for each in found.values()]
    return [*noise, *pairs(run, "greedy")]


def test_adversarial_texts_do_what_the_report_says(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As plain text, through the command that a user would try them with."""
    claims = [(found["texts"], found["prediction"]) for _, found in outcomes(run)]
    for one in run.report["examples"]:
        claims += [
            (one[side]["texts"], one[side]["prediction"]) for side in ("original", "attacked")
        ]
    assert run.report["examples"]
    table = tmp_path / "texts.jsonl"
    columns = [f"t{i}" for i in range(len(claims[0][0]))]
    rows = [dict(zip(columns, texts, strict=True)) for texts, _ in claims]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": run.case.path, "input": table, "columns": columns}
    assert predict(as_words({**options, "output_format": "jsonl"})) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    for (_, claimed), line in zip(claims, lines, strict=True):
        if run.case.kind == "regression":
            assert line["value"] == pytest.approx(claimed, rel=1e-4)
        else:
            assert line["label"] == claimed


def test_attacks_break_what_was_right(run: Any) -> None:
    """Else the tests of their texts show nothing."""
    assert any(found["edits"] and not found["correct"] for _, found in pairs(run, "greedy"))
    for one in run.report["examples"]:
        assert one["original"]["texts"] != one["attacked"]["texts"]
        assert one["original"]["prediction"] != one["attacked"]["prediction"]


# Limits


def words_changed(before: str, after: str) -> list[tuple[str, str]]:
    pairs = zip(before.split(), after.split(), strict=True)
    return [(old, new) for old, new in pairs if old != new]


def test_attacks_keep_to_their_limits(run: Any) -> None:
    share = {"noise": 0.3, "greedy": 0.2}
    for part in share:
        for example, record in pairs(run, part):
            for found in record.values() if part == "noise" else [record]:
                words = sum(any(map(str.isalnum, w)) for t in example.texts for w in t.split())
                changed = [
                    change
                    for old, new in zip(example.texts, found["texts"], strict=True)
                    for change in words_changed(old, new)
                ]
                assert len(changed) == found["edits"] <= max(1, round(share[part] * words))
                for old, new in changed:
                    assert (old[0], old[-1]) == (new[0], new[-1])
                    assert len(old) >= 4
                if part == "greedy":
                    assert found["edits"] <= max(1, math.floor(share[part] * words))
                    assert found["queries"] <= FEW["max_queries"]


def test_texts_that_may_not_be_edited_and_special_tokens(
    measure: Measure, solved: dict[str, Any], tmp_path: Path
) -> None:
    special = "<mask> [MASK] <s> </s>"
    rows = [{**row, "b": f"{special} {row['b']} {special}"} for row in solved["pair"].rows]
    table = tmp_path / "special.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = {"input": table, "parts": ["noise", "greedy"], "max_edits": 1, "noise_rates": 1}
    both = measure("pair", **chosen)
    second = measure("pair", **chosen, edit=2)
    for found in (both, second):
        for example, record in outcomes(found):
            words = record["texts"][1].split()
            assert words[:4] == words[-4:] == special.split()
            if found is second:
                assert record["texts"][0] == example.texts[0]
    assert any(record["texts"][0] != example.texts[0] for example, record in outcomes(both))
    assert any(record["texts"][1] != example.texts[1] for example, record in outcomes(second))


# Stopped, and gone on with


def report_files(folder: Path) -> dict[str, bytes]:
    """The files of a report, without what is of the time that it was made."""
    report = json.loads((folder / "report.json").read_text())
    made = report.pop("time")["created"].encode()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    files |= {name: files[name].replace(made, b"TIME") for name in REPORT[1:]}
    assert all(files[name].count(b"TIME") == 1 for name in REPORT[1:])
    return files | {"report.json": json.dumps(report).encode()}


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The part of every chunk that is measured; a chunk is of 4 examples."""
    monkeypatch.setattr(runner, "CHUNK", 4)
    noted: list[str] = []
    add = Store.add

    def counted(self: Store, *given: Any) -> Any:
        noted.append(json.loads(self._head)["part"])
        return add(self, *given)

    monkeypatch.setattr(Store, "add", counted)
    return noted


def test_a_stopped_run_goes_on(
    solved: dict[str, Any], chunks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = solved["single"]
    parts = ["noise", "greedy", "linf"]
    chosen = {"path": case.path, "input": case.table, "output": "report", "parts": parts}
    chosen |= FEW

    def measure_in(name: str) -> dict[str, bytes]:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        chunks.clear()
        assert robustness(**chosen).status == 0
        return report_files(Path("report"))

    whole = measure_in("whole")
    assert chunks == ["clean"] * 6 + ["noise"] * 6 + ["greedy"] * 2 + ["linf"] * 2

    (tmp_path / "stopped").mkdir()
    monkeypatch.chdir(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        add = Store.add

        def stop(self: Store, *given: Any) -> Any:
            done = add(self, *given)
            if len(chunks) == 9:
                raise KeyboardInterrupt
            return done

        chunks.clear()
        patch.setattr(Store, "add", stop)
        done = robustness(**chosen)
    assert (done.status, done.out) == (130, "")
    assert [path.name for path in Path("report").iterdir()] == ["work"]
    assert measure_in("stopped") == whole
    assert chunks == ["noise"] * 3 + ["greedy"] * 2 + ["linf"] * 2

    for path in Path("report/work").iterdir():
        content = path.read_bytes()
        part = json.loads(content.splitlines()[0])["part"]
        if part == "noise":
            path.write_bytes(content[:-20])  # of the last of its six chunks
        elif part == "clean":
            path.write_bytes(b"\xff\x00 garbage\n" * 9)
        elif part == "greedy":
            path.write_bytes(b"")
        else:  # what it says that it is
            path.write_bytes(b"{}" + content[content.index(b"\n") :])
    assert measure_in("stopped") == whole
    assert chunks == ["clean"] * 6 + ["noise"] + ["greedy"] * 2 + ["linf"] * 2


def test_what_is_added_to_a_report_is_measured_alone(
    measure: Measure, chunks: list[str], other_models: list[Path], tmp_path: Path
) -> None:
    first, second, _ = other_models
    chosen = {"output": tmp_path / "report", "parts": ["noise"]}
    alone = measure(path=first, **chosen)
    chunks.clear()
    both = measure(path=[first, second], **chosen)
    assert chunks == ["clean"] * 6 + ["noise"] * 6
    assert [both.records[part][0] for part in both.records] == [
        alone.records[part][0] for part in alone.records
    ]
    chunks.clear()
    more = measure(path=[first, second], **{**chosen, "parts": ["noise", "smoothness"]})
    assert chunks == ["smoothness"] * 4
    assert more.records["noise"] == both.records["noise"]
    # What a record depends on is told apart.
    chunks.clear()
    measure(path=[first, second], **chosen, noise_rates=0.4)
    assert chunks == ["noise"] * 12
    changed = torch.load(second)
    changed["model"] = {k: v * 1.1 if "out_proj" in k else v for k, v in changed["model"].items()}
    torch.save(changed, second)
    chunks.clear()
    measure(path=[first, second], **chosen)
    assert chunks == ["clean"] * 6 + ["noise"] * 6


# Several checkpoints


@pytest.fixture
def other_models(cases: dict[str, Any], tmp_path: Path) -> list[Path]:
    """Three that differ in their heads, in folders a, b and c."""
    state = torch.load(cases["single"].path)
    paths = []
    for i, name in enumerate("abc"):
        paths.append(tmp_path / name / "checkpoint_best.pt")
        paths[-1].parent.mkdir()
        torch.manual_seed(i)
        for key, weight in state["model"].items():
            if key.endswith("out_proj.weight") and "classification" in key:
                weight.add_(0.2 * torch.randn_like(weight))
        torch.save(state, paths[-1])
    return paths


def test_seeds_and_comparisons(
    other_models: list[Path], solved: dict[str, Any], tmp_path: Path
) -> None:
    a, b, c = other_models
    out = tmp_path / "report"
    chosen = {**FEW, "input": solved["single"].table, "output": out}
    done = robustness(
        path=[f"plain={a}", f"plain={b}", f"alum={c}"], parts=["noise", "smoothness"], **chosen
    )
    assert done.status == 0
    report = strict_json((out / "report.json").read_text())
    assert [(m["name"], len(m["checkpoints"])) for m in report["models"]] == [
        ("plain", 2),
        ("alum", 1),
    ]
    digests = [each["sha256"] for m in report["models"] for each in m["checkpoints"]]
    assert len(set(digests)) == 3
    for one in report["measures"]:
        assert [len(one["values"][name]["seeds"]) for name in ("plain", "alum")] == [2, 1]
        [compared] = one["comparisons"]
        assert (compared["baseline"], compared["model"]) == ("plain", "alum")
        plain, alum = (one["values"][name]["value"] for name in ("plain", "alum"))
        if one["key"] == "clean.accuracy":
            assert plain == pytest.approx(mean(one["values"]["plain"]["seeds"]), rel=1e-5)
        assert compared["difference"] == pytest.approx(alum - plain, abs=1e-3)
        assert compared["p"] <= compared["p_adjusted"]
    assert "diff." in done.out
    assert len(report["time"]["seconds"]) == 3


def test_more_than_two_models_make_a_leaderboard(
    other_models: list[Path], solved: dict[str, Any], tmp_path: Path
) -> None:
    """Printed and written, the best first, with what training took; compare makes the same."""
    for number, path in enumerate(other_models[:2], 1):
        state = torch.load(path)
        state["extra_state"]["previous_training_time"] = 3599.6 * number
        state["optimizer_history"][-1]["num_updates"] = 1500 * number
        torch.save(state, path)
    out = tmp_path / "report"
    chosen = {**FEW, "input": solved["single"].table, "output": out, "parts": "noise"}
    done = robustness(path=[f"{path.parent.name}={path}" for path in other_models], **chosen)
    assert done.status == 0
    report = strict_json((out / "report.json").read_text())
    [worst] = [one["values"] for one in report["measures"] if one["key"] == "attacks.worst"]
    best = sorted("abc", key=lambda name: -worst[name]["value"])
    assert len({worst[name]["value"] for name in best}) > 1
    took = {"a": "1:00:00, 1,500", "b": "1:59:59, 3,000", "c": ""}
    head, rule, *rows = done.out.splitlines()
    rows = rows[: rows.index(rule)]
    assert head.split() == ["examples", *best]
    assert [row.split(" (%)")[0] for row in rows[:-1]] == [
        *("Clean: Accuracy", "Clean: Calibration error"),
        *("All attacks together: Accuracy, mean", "All attacks together: Accuracy, worst"),
        "Character noise: Accuracy, 30% of words",
    ]
    for row, key in ((rows[0], "clean.accuracy"), (rows[3], "attacks.worst")):
        [found] = [one["values"] for one in report["measures"] if one["key"] == key]
        cells = [
            "{value:.1f} [{low:.1f}, {high:.1f}]".format(**found[name]).replace("-0.0", "0.0")
            for name in best
        ]
        assert re.split(r"  +", row)[1:] == ["24", *cells]
    expected = [took[name] for name in best if took[name]]
    assert re.split(r"  +", rows[-1]) == ["Training: h:mm:ss, updates", *expected]
    text = (out / "report.md").read_text()
    assert f"## Leaderboard\n\n|  | examples | {' | '.join(best)} |" in text
    assert f"| {' | '.join(took[name] for name in best)} |" in text
    assert "1:59:59" in (out / "report.html").read_text()
    with redirect_stdout(StringIO()) as printed:
        assert command.main(["compare", str(out), "--output", str(tmp_path / "board")]) == 0
    assert done.out.startswith(printed.getvalue().rsplit(rule, 1)[0])
    board = (tmp_path / "board" / "leaderboard.md").read_text()
    assert f"|  | examples | {' | '.join(best)} |" in board
    assert "\nMeasured on 24 of " in board
    picture = (tmp_path / "board" / "overview.svg").read_text()
    assert "Character noise" in picture
    assert "more than" not in board
    assert (tmp_path / "board" / "overview.png").read_bytes().startswith(b"\x89PNG")
    # Into the report's own folder it would take the report's picture.
    assert command.main(["compare", str(out), "--output", str(out)]) == 2


def test_a_report_of_other_models_is_not_overwritten(tmp_path: Path) -> None:
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    command._check_output(tmp_path / "nowhere", [one])
    (tmp_path / "work").mkdir()
    command._check_output(tmp_path, [one])  # of a run that was stopped
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="exists: remove it, or name another folder"):
        command._check_output(tmp_path, [one])
    models = [{"name": "a", "checkpoints": [{"path": str(one), "sha256": ""}]}]
    (tmp_path / "report.json").write_text(json.dumps({"models": models}))
    command._check_output(tmp_path, [one])
    command._check_output(tmp_path, [other, one])  # it grows
    with pytest.raises(UsageError, match=r"report of other checkpoints \(.*one.pt\): remove"):
        command._check_output(tmp_path, [other])
    models[0]["checkpoints"].append({"path": str(other), "sha256": ""})
    (tmp_path / "report.json").write_text(json.dumps({"models": models}))
    command._check_output(tmp_path, [other, one])
    with pytest.raises(UsageError, match=r"report of other checkpoints \(.*other.pt\): remove"):
        command._check_output(tmp_path, [one])  # it would shrink


def test_models_go_by_the_names_of_their_folders(
    measure: Measure, other_models: list[Path]
) -> None:
    found = measure(path=other_models[::-1], parts="noise")
    assert [model["name"] for model in found.models] == ["c", "b", "a"]
    assert {one["baseline"] for m in found.report["measures"] for one in m["comparisons"]} == {"c"}
    clean = found.records["clean"]
    assert clean[0] != clean[1] != clean[2]


# Options


def column(found: SimpleNamespace, part: str, name: str) -> list[Any]:
    return [record[name] for _, record in pairs(found, part)]


def test_how_many_examples(measure: Measure) -> None:
    parts = ["noise", "smoothness"]
    few, more = (measure(parts=parts, examples=n, attack_examples=3) for n in (10, 20))
    whole = measure(parts=parts, examples=0, attack_examples=0)
    sizes = [(len(f.examples["noise"]), len(f.examples["smoothness"])) for f in (few, more, whole)]
    assert sizes == [(10, 3), (20, 3), (90, 90)]
    numbers = [{example.number for example in f.examples["clean"]} for f in (few, more, whole)]
    assert numbers[0] < numbers[1] < numbers[2] == set(range(90))


def test_parts_and_noise_rates(measure: Measure) -> None:
    found = measure(parts=["noise"], noise_rates=[0.1, 0.9])
    assert list(found.records) == ["clean", "noise"]
    assert {key.split()[1] for key in found.records["noise"][0][0]} == {"0.1", "0.9"}
    edits = [
        sum(record[f"swap {rate}"]["edits"] for _, record in pairs(found, "noise"))
        for rate in (0.1, 0.9)
    ]
    assert 0 < 3 * edits[0] < edits[1]
    assert list(found.report["curves"]) == ["noise"]


def test_limits_of_word_attacks(measure: Measure) -> None:
    small, usual = (
        measure(parts="greedy", max_queries=n, max_edits=1, attack_examples=0) for n in (5, 40)
    )
    assert max(column(small, "greedy", "queries")) == 5
    assert 5 < max(column(usual, "greedy", "queries")) <= 40
    one = measure(parts="greedy", max_queries=40, max_edits=0.01, attack_examples=0)
    assert max(column(one, "greedy", "edits")) == 1 < max(column(usual, "greedy", "edits"))


def radii(found: SimpleNamespace) -> list[float]:
    return [math.inf if e is None else e for e in column(found, "linf", "epsilon")]


def test_options_of_attacks_on_embeddings(measure: Measure) -> None:
    chosen = {"parts": "linf", "attack_examples": 12}
    one, more, restarts = (
        radii(measure(**chosen, steps=steps, restarts=starts, objectives="loss"))
        for steps, starts in ((1, 1), (8, 1), (1, 4))
    )
    for stronger in (more, restarts):
        assert all(a <= b for a, b in zip(stronger, one, strict=True))
        assert stronger != one
    divergence = measure(**chosen, steps=1, objectives="divergence")
    assert radii(divergence) != one


def test_radii(measure: Measure) -> None:
    found = measure(parts=["linf"], radii=[0.5, 0.02])
    keys = [key for key in values(found.report) if key.startswith("linf.accuracy")]
    assert keys == ["linf.accuracy.0.02", "linf.accuracy.0.5"]
    for key in keys:
        expected = mean(radius > float(key[len("linf.accuracy.") :]) for radius in radii(found))
        assert values(found.report)[key] == pytest.approx(100 * expected, rel=1e-5)


def test_resamples(measure: Measure) -> None:
    reports = [measure(parts="smoothness", resamples=n).report for n in (100, 300)]
    assert [report["resamples"] for report in reports] == [100, 300]
    low = [report["measures"][-1]["values"] for report in reports]
    assert low[0] != low[1]


def test_seed(measure: Measure, solved: dict[str, Any], tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(solved["single"].table.read_text().splitlines()[:12]))
    parts = ["noise", "greedy", "linf", "smoothness"]
    chosen = {"input": few, "parts": parts, "attack_examples": 0, "objectives": "divergence"}
    first, again, other = (measure(**chosen, seed=seed) for seed in (1, 1, 2))
    assert first.records == again.records
    assert first.report["measures"] == again.report["measures"]
    assert first.records["clean"] == other.records["clean"]
    for part in parts:
        assert first.records[part] != other.records[part]
    bounds = [found.report["measures"][0]["values"] for found in (first, other)]
    assert bounds[0] != bounds[1]  # the resampling
    numbers = [
        [example.number for example in measure(parts="noise", seed=seed).examples["clean"]]
        for seed in (1, 2)
    ]
    assert numbers[0] != numbers[1]


def test_quick(measure: Measure) -> None:
    unset = dict.fromkeys(("steps", "restarts", "noise_rates", "max_queries", "resamples"))
    chosen = {"examples": 4, "attack_examples": 1, "parts": "noise", **unset}
    found = measure(**chosen, quick=True).settings
    assert [found[name] for name in ("steps", "restarts", "max_queries")] == [5, 1, 60]
    assert (found["noise_rates"], found["resamples"], found["examples"]) == ([0.2], 5000, 4)
    found = measure(**chosen).settings
    assert [found[name] for name in ("steps", "restarts", "max_queries")] == [10, 2, 200]


def test_tolerance(measure: Measure, solved: dict[str, Any]) -> None:
    answers = [row["label"] for row in solved["regression"].rows]
    usual = measure("regression", parts="noise")
    assert usual.data["tolerance"] == pytest.approx(pstdev(answers) / 2)
    strict = measure("regression", parts="noise", tolerance=1e-3)
    wide = measure("regression", parts="noise", tolerance=1e9)
    for found in (usual, strict, wide):
        for example, record in pairs(found, "clean"):
            error = abs(record["prediction"] - float(example.answer))
            assert record["correct"] == (error <= found.data["tolerance"])
            assert record["loss"] == pytest.approx(error**2)
    shares = [mean(column(found, "clean", "correct")) for found in (strict, usual, wide)]
    assert shares[0] == 0 < shares[1] < shares[2] == 1


def test_tokens_of_a_batch(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    score = Predictor.score

    def noted(self: Predictor, inputs: Any) -> torch.Tensor:
        sizes.append(len(inputs) * max(map(len, inputs)))
        return score(self, inputs)

    monkeypatch.setattr(Predictor, "score", noted)
    found = measure(parts="noise", max_tokens=100)
    assert 80 < max(sizes) <= 100
    usual = measure(parts="noise")
    assert max(sizes) > 300
    for name in ("prediction", "correct"):
        assert column(found, "clean", name) == column(usual, "clean", name)


def test_adversarial_sets(measure: Measure, solved: dict[str, Any], tmp_path: Path) -> None:
    rows = solved["single"].rows
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    other = tmp_path / "other.jsonl"
    names = {"no": "negative", "yes": "positive", "well, maybe": "either"}
    renamed = [{**row, "label": names[row["label"]]} for row in rows[:30]]
    other.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    found = measure(
        parts="noise",
        columns="a",
        label="label",
        adversarial_set=[own, f"mine={other}"],
        map_labels=["negative=no", "positive=yes,no", "either=well, maybe"],
    )
    assert list(found.records) == ["clean", "noise", "set:own", "set:mine"]
    assert len(found.examples["set:own"]) == 7
    assert len(found.examples["set:mine"]) == 24  # --examples
    for example, record in pairs(found, "set:own"):
        assert example.answer == rows[example.number]["label"]
        assert record["correct"] == (example.number % 5 != 4)
    for example, record in pairs(found, "set:mine"):
        right = {"no": ["no"], "yes": ["yes", "no"]}.get(rows[example.number]["label"], LABELS[1:2])
        assert record["correct"] == (record["prediction"] in right)
    assert values(found.report)["set:mine.accuracy"] > 0


def test_labels_and_a_set_that_knows_fewer(
    measure: Measure, solved: dict[str, Any], tmp_path: Path
) -> None:
    labels = ["entailment", "neutral", "contradiction"]
    rows = solved["pair"].rows
    table = tmp_path / "renamed.jsonl"
    renamed = [{**row, "label": labels[LABELS.index(row["label"])]} for row in rows]
    table.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    hans = tmp_path / "hans.txt"
    lines = [
        f"{['entailment', 'non-entailment'][i % 2]}\t{row['a']}\t{row['b']}\n"
        for i, row in enumerate(rows[:20])
    ]
    hans.write_text("gold_label\tsentence1\tsentence2\n" + "".join(lines))
    found = measure(
        "pair", input=table, labels=labels, parts="noise", adversarial_set=f"hans:{hans}"
    )
    assert found.data["labels"] == labels
    usual = measure("pair", parts="noise")
    assert column(found, "clean", "correct") == column(usual, "clean", "correct")
    right = column(found, "set:hans", "correct")
    for i, prediction in enumerate(column(found, "set:hans", "prediction")):
        assert right[i] == ((prediction == "entailment") == (i % 2 == 0))
    assert True in right[1::2]


def test_head(measure: Measure, cases: dict[str, Any], tmp_path: Path) -> None:
    state = torch.load(cases["single"].path)
    for name, weight in list(state["model"].items()):
        if name.startswith("classification_heads."):
            new = name.replace("sentence_classification_head", "other")
            state["model"][new] = -weight if "out_proj" in name else weight
    path = tmp_path / "two.pt"
    torch.save(state, path)
    usual, other = (measure(path=path, parts="noise", **h) for h in ({}, {"head": "other"}))
    assert column(usual, "clean", "prediction") != column(other, "clean", "prediction")
    assert mean(column(usual, "clean", "correct")) > 0.7 > mean(column(other, "clean", "correct"))


# Wrong usage


def places(solved: dict[str, Any], cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What stands for what in the table of wrong usages."""
    for name, labels in {"label": ("no", "so"), "number": ("1", "nan"), "same": (1, 1)}.items():
        rows = [json.dumps({"a": "fine", "label": label}) + "\n" for label in labels]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    (folder / "empty.jsonl").touch()
    (folder / "file").touch()
    unlabelled = folder / "unlabelled"
    shutil.copytree(cases["single"].data, unlabelled)
    for path in (unlabelled / "label").glob("valid*"):
        path.unlink()
    unknown = folder / "unknown"
    shutil.copytree(cases["single"].data, unknown)
    builder = indexed_dataset.make_builder(str(unknown / "label/valid.bin"), "mmap", vocab_size=9)
    for i in range(90):
        builder.add_item(torch.tensor([4 if i else 3, 2]))
    builder.finalize(str(unknown / "label/valid.idx"))
    (folder / "link.pt").symlink_to(cases["single"].path)
    return {"IN": folder, **{kind.upper(): solved[kind].path for kind in KINDS}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"examples": -1}, "--examples is -1: it must be 0 or more"),
        ({"attack_examples": -3}, "--attack-examples is -3: it must be 0 or more"),
        ({"resamples": 99}, "--resamples is 99: it must be 100 or more"),
        ({"steps": 0}, "--steps is 0: it must be 1 or more"),
        ({"restarts": -1}, "--restarts is -1: it must be 1 or more"),
        ({"max_queries": 0}, "--max-queries is 0: it must be 1 or more"),
        ({"max_tokens": 0}, "--max-tokens is 0: it must be 1 or more"),
        ({"noise_rates": [0.1, 0]}, "--noise-rates has 0: a share of the words is above 0"),
        ({"noise_rates": 1.5}, "--noise-rates has 1.5: a share of the words is above 0 and at"),
        ({"noise_rates": "nan"}, "--noise-rates has nan"),
        ({"max_edits": 0}, "--max-edits is 0: a share of the words is above 0 and at most 1"),
        ({"max_edits": "nan"}, "--max-edits is nan"),
        ({"radii": [0.1, 0]}, "--radii has 0: radii are finite, and above 0"),
        ({"radii": "inf"}, "--radii has inf"),
        ({"edit": 0}, "--edit is 0: the texts of an example count from 1"),
        ({"edit": 3}, "--edit is 3: an example has 1 text$"),
        ({"input": None}, "--columns and --label are those of --input, which is not given"),
        ({"columns": ["a", "label"]}, "an example has 2 texts, of those trained on 1"),
        ({"columns": "b"}, ":1: there is no b: there are a, label"),
        ({"label": "b"}, ":1: there is no b: there are a, label"),
        (
            {"input": "IN/label.jsonl"},
            "label.jsonl:2: the label 'so' is none of the classes .no",
        ),
        ({"input": "IN/empty.jsonl"}, "empty.jsonl has no examples"),
        ({"input": "IN/none.tsv"}, "none.tsv does not exist"),
        ({"tolerance": 1}, "--tolerance is for regression, but the model has classes"),
        ({"path": "REGRESSION", "tolerance": -1, "input": "IN/number.jsonl"}, ":2: .*is no number"),
        (
            {"path": "REGRESSION", "tolerance": 0, "input": "IN/same.jsonl"},
            "--tolerance is 0: it must be above 0, and finite",
        ),
        ({"path": "REGRESSION", "input": "IN/same.jsonl"}, "all answers are equal: give --toler"),
        (
            {"path": "REGRESSION", "input": "IN/same.jsonl", "tolerance": 1, "textattack": "X"},
            "--textattack is for classes, but the model predicts numbers",
        ),
        ({"input": None, "columns": None, "label": None, "subset": "test"}, "has no subset test"),
        (
            {"input": None, "columns": None, "label": None, "data": "IN/unlabelled"},
            "unlabelled/label has no labels of valid",
        ),
        (
            {"input": None, "columns": None, "label": None, "data": "IN/unknown"},
            "unknown/label/valid: the label of example 1 is '<unk>', which the model does not have",
        ),
        ({"parts": ["noise", "pwws"]}, "substitution by synonyms needs NLTK"),
        ({"textattack": "NoSuch2020"}, "TextAttack has no recipe NoSuch2020: it must be one of X"),
        ({"adversarial_set": "IN/empty.jsonl"}, "empty.jsonl: there are no examples"),
        (
            {"adversarial_set": ["IN/label.jsonl"]},
            "label.jsonl: it is not known what 'so' is for the model: .*--map-labels so=",
        ),
        (
            {"adversarial_set": ["TABLE", "a/../single=TABLE"]},
            "single=.*does not exist",
        ),
        ({"adversarial_set": ["TABLE", "single=TABLE"]}, "another one is called single: put NAME="),
        ({"map_labels": "a=no"}, "--map-labels is for --adversarial-set, which is not given"),
        ({"adversarial_set": "TABLE", "map_labels": "a"}, "--map-labels a: it must be LABEL=LABEL"),
        ({"output": "IN/file"}, "file is a file, not a folder"),
        ({"output": "IN/file/in"}, "file is a file, not a folder"),
        ({"path": ["SINGLE", "SINGLE"]}, "the checkpoint is given twice"),
        ({"path": ["a=SINGLE", "a=IN/link.pt"]}, "the checkpoint is given twice"),
        (
            {"path": ["SINGLE", "PAIR"]},
            r"another checkpoint is of a folder shared\S*, too: put NAME= before both",
        ),
        ({"output": "IN"}, "exists: remove it, or name another folder"),
        ({"path": "=SINGLE"}, "there is no name before the equals sign"),
        ({"path": ["SINGLE", "IN/none.pt"]}, "none.pt does not exist"),
        ({"path": ["SINGLE", "b=CHOICES"]}, "choices.pt answers with 0, 1, 2, .*single.pt with no"),
        ({"path": ["SINGLE", "b=REGRESSION"]}, "regression.pt answers with numbers, .*single.pt w"),
        ({"path": "IN/empty.jsonl"}, "empty.jsonl is no checkpoint, or was cut short"),
        ({"head": "none"}, "has no head none: give --head, one of sentence_classification_head"),
        ({"labels": "a"}, "has 3, not the 1 of --labels"),
        ({"data": "nowhere"}, "--data nowhere is no folder"),
    ],
    ids=str,
)
def test_wrong_usage(
    wrong: dict[str, Any],
    message: str,
    solved: dict[str, Any],
    cases: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_wordnet(monkeypatch)
    monkeypatch.setattr(
        "alum_fairseq.robustness.attacks.textattack_recipes._library",
        lambda: library_with_recipe("X"),
    )
    names = places(solved, cases, tmp_path)
    names["TABLE"] = solved["single"].table
    before = sorted(tmp_path.rglob("*"))

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(each) for each in value]
        if not isinstance(value, str):
            return value
        return re.sub(r"\b[A-Z]{2,}\b", lambda word: str(names.get(word[0], word[0])), value)

    usual = {"path": "SINGLE", "input": "TABLE", "columns": "a", "label": "label"}
    usual |= {"output": "IN/out", "cpu": True}
    done = robustness(**{name: placed(value) for name, value in {**usual, **wrong}.items()})
    assert (done.status, done.out) == (2, ""), done.err
    assert re.search(message, done.err.strip()), done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert sorted(tmp_path.rglob("*")) == before


def library_with_recipe(name: str) -> SimpleNamespace:
    """As much of TextAttack as is asked for before an attack."""

    class AttackRecipe:
        pass

    recipe = type(name, (AttackRecipe,), {})
    wrappers = SimpleNamespace(ModelWrapper=object)
    recipes = SimpleNamespace(**{"AttackRecipe": AttackRecipe, name: recipe})
    return SimpleNamespace(models=SimpleNamespace(wrappers=wrappers), attack_recipes=recipes)


def test_textattack_that_is_not_installed(
    solved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textattack", None)
    case = solved["single"]
    out = tmp_path / "out"
    done = robustness(
        path=case.path, input=case.table, output=out, textattack="PWWSRen2019", parts="noise"
    )
    assert done.status == 2
    assert "pip install textattack" in done.err
    assert not out.exists()


# The installed command


def test_as_a_command(
    solved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bar that says how long it will take; the page's template is installed, too."""
    monkeypatch.setenv("ALUM_PROGRESS", "1")
    case = solved["single"]
    options = {**FEW, "path": case.path, "input": case.table, "output": tmp_path / "out"}
    said = run_tool("alum-robustness", *as_words(options), "--parts", "smoothness").stdout
    bars = re.findall(r"smoothness: +(\d+)%\|.*?\[(\d\d:\d\d)<(\d\d:\d\d|\?), .*? passes", said)
    assert bars, said
    assert "</html>" in (tmp_path / "out/report.html").read_text()
    assert "Accuracy (%)" in said


def test_rows_without_a_label_are_left_out(cases: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "a.tsv"
    table.write_text(f"a\tlabel\none\t{LABELS[0]}\ntwo\t-1\nthree\t{LABELS[1]}\n")
    given = {"path": cases["single"].path, "input": table, "columns": "a", "label": "label"}
    given |= {"parts": "noise", "output": tmp_path / "report", **FEW}
    assert "give --no-label -1" in robustness(**given).err
    done = robustness(**given, no_label="-1")
    assert (done.status, "1 rows of" in done.err) == (0, True)
    assert json.loads((tmp_path / "report/report.json").read_text())["data"]["examples"] == 2
