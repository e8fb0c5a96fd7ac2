"""Prediction: the numbers of fairseq's own validation, from text."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.data import iterators
from omegaconf import OmegaConf
from support.options import command_line
from support.places import PLUGIN, ROOT
from support.tools import run_tool
from support.untrained import LABELS, texts
from torch import Tensor

from alum_fairseq import UsageError
from alum_fairseq.data.record import DataRecord
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.command import main as predict


def by_fairseq(case: Any) -> tuple[Tensor, float, float]:
    """Logits in the order of the table, loss and share of right answers, by fairseq's own code."""
    state = torch.load(case.path)
    cfg = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    model.load_state_dict(state["model"], model_cfg=cfg.model)
    criterion = task.build_criterion(cfg.criterion)
    model.eval()
    task.load_dataset("valid")
    logits = {}
    loss = right = 0.0
    batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=7)
    assert isinstance(batches, iterators.EpochBatchIterator)
    for sample in batches.next_epoch_itr(shuffle=False):
        found = []
        hook = model.register_forward_hook(lambda *call, found=found: found.append(call[-1][0]))
        with torch.no_grad():
            part, _, log = criterion(model, sample)
        hook.remove()
        loss, right = loss + float(part), right + float(log.get("ncorrect", 0))
        logits |= dict(zip(sample["id"].tolist(), torch.cat(found, dim=1), strict=True))
    count = len(logits)
    return torch.stack([logits[i] for i in range(count)]), loss / count, right / count


def test_the_numbers_are_fairseqs(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    logits, loss, accuracy = by_fairseq(case)
    assert logits.std(dim=0).max() > 0.05
    predictor = Predictor.load(case.path)
    torch.testing.assert_close(predictor.logits(texts(case)), logits, atol=1e-5, rtol=1e-5)
    one_by_one = predictor.logits(texts(case), max_tokens=1)
    torch.testing.assert_close(one_by_one, logits, atol=1e-5, rtol=1e-5)

    columns = ["a", "b"] if case.kind == "pair" else ["a"]
    columns += ["c0", "c1", "c2"] if case.kind == "choices" else []
    command = ["--path", case.path, "--input", case.table, "--columns", *columns]
    assert predict([*map(str, command), "--label", "label"]) == 0
    out, said = capsys.readouterr()
    assert len(out.splitlines()) == 1 + len(case.rows)
    measured = float(re.search(r"loss ([\d.]+)", said)[1])
    if case.kind == "regression":
        # Of the numbers in the table, which alum-prepare divided by 5.
        assert measured == pytest.approx(25 * loss / math.log(2), abs=2e-3)
        assert "pearson" in said
    else:
        assert measured == pytest.approx(loss / math.log(2), abs=2e-3)
        found = float(re.search(r"accuracy ([\d.]+)", said)[1])
        assert found == pytest.approx(100 * accuracy, abs=1e-3)
    assert "were read without their ends" in said


def test_fairseq_validate_says_the_same(
    cases: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases["pair"]
    output = run_tool(
        *("fairseq-validate", case.data, "--path", case.path, "--user-dir", PLUGIN, "--cpu"),
        *("--task", "alum_sentence_prediction", "--criterion", "alum_sentence_prediction"),
        *("--num-classes", 3, "--init-token", 0, "--separator-token", 2, "--max-positions", 40),
        # With a multiple of 8, its default, fairseq loses examples where the batch size is none.
        *("--batch-size", 9, "--required-batch-size-multiple", 1, "--num-workers", 0),
    ).stdout
    assert predict(["--path", str(case.path), "--input", str(case.table), "--label", "label"]) == 0
    said = capsys.readouterr().err
    for name in ("loss", "accuracy"):
        theirs = float(re.search(rf"\| {name} ([\d.]+)", output)[1])
        ours = float(re.search(rf"{name} ([\d.]+)", said)[1])
        assert ours == pytest.approx(theirs, abs=0.06 if name == "accuracy" else 6e-4)


def test_predictions(case: Any) -> None:
    predictor = Predictor.load(case.path)
    found = predictor.predict(texts(case))
    assert len(found) == len(case.rows)
    logits = predictor.logits(texts(case))
    for prediction, row in zip(found, logits, strict=True):
        if case.kind == "regression":
            assert prediction.label is None
            assert prediction.value == pytest.approx(5 * float(row[0]), rel=1e-5)
        else:
            labels = ["0", "1", "2"] if case.kind == "choices" else LABELS
            assert list(prediction.probabilities) == labels
            assert prediction.label == labels[row.argmax()]
            assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
    if case.kind != "regression":
        assert len({prediction.label for prediction in found}) > 1
    assert predictor.predict([]) == []


def test_the_manual(cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, in a folder where its checkpoint is."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/convert_and_predict.md").read_text(), flags=re.DOTALL
    )
    [code] = [textwrap.dedent(block) for block in blocks if "Predictor" in block]
    (tmp_path / "data/alum").mkdir(parents=True)
    (tmp_path / "data/alum/checkpoint_best.pt").symlink_to(cases["single"].path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("predictor.predict(", "found = predictor.predict("), names)
    assert [prediction.label in LABELS for prediction in names["found"]] == [True, True]


def test_candidates_are_cut_as_in_training(cases: dict[str, Any], tmp_path: Path) -> None:
    case = cases["choices"]
    state = torch.load(case.path)
    state["cfg"]["task"]["max_option_length"] = 3
    torch.save(state, tmp_path / "cut.pt")
    cut = SimpleNamespace(**{**vars(case), "path": tmp_path / "cut.pt"})
    logits = Predictor.load(cut.path).logits(texts(cut))
    torch.testing.assert_close(logits, by_fairseq(cut)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits, Predictor.load(case.path).logits(texts(case)), atol=1e-3)


def test_batches_have_at_most_so_many_tokens(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    score = Predictor.score

    def noted(self: Predictor, inputs: Any) -> Tensor:
        sizes.append(len(inputs) * max(map(len, inputs)))
        return score(self, inputs)

    monkeypatch.setattr(Predictor, "score", noted)
    command = ["--path", str(cases["single"].path), "--input", str(cases["single"].table)]
    assert predict([*command, "--max-tokens", "100"]) == 0
    assert 80 < max(sizes) <= 100
    assert len(sizes) > 10


def as_input(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))


def test_standard_input_to_standard_output(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    single, pair = cases["single"], cases["pair"]
    examples = [row["a"] for row in single.rows[:3]]
    as_input(monkeypatch, "\n".join(examples) + "\n")
    assert predict(["--path", str(single.path)]) == 0
    header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["label", *(f"p({label})" for label in LABELS)]
    expected = Predictor.load(single.path).predict(examples)
    assert [line[0] for line in lines] == [prediction.label for prediction in expected]
    assert float(lines[1][2]) == pytest.approx(expected[1].probabilities[LABELS[1]], abs=1e-6)

    as_input(monkeypatch, "the first\tthe second\n")
    assert predict(["--path", str(pair.path), "--keep-input", "--output-format", "jsonl"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"] == ["the first", "the second"]
    assert sorted(found["probabilities"]) == sorted(LABELS)


def test_standard_input_of_json_is_no_text(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases["pair"]
    line = json.dumps({name: case.rows[0][name] for name in ("a", "b")}) + "\n"
    for kind in ("single", "pair"):
        as_input(monkeypatch, line)
        assert predict(["--path", str(cases[kind].path)]) == 2
        said = "standard input:1: this is JSON: give --format jsonl, or --columns 1 to read it as t"
        assert said in capsys.readouterr().err
    as_input(monkeypatch, line)
    assert predict(["--path", str(cases["single"].path), "--columns", "1"]) == 0
    capsys.readouterr()
    as_input(monkeypatch, line)
    assert predict(["--path", str(case.path), "--format", "jsonl"]) == 0  # columns as in training
    label = capsys.readouterr().out.splitlines()[1].split("\t")[0]
    (expected,) = Predictor.load(case.path).predict([(case.rows[0]["a"], case.rows[0]["b"])])
    assert label == expected.label


def test_rows_without_a_label_are_predicted_and_not_scored(
    cases: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, table = cases["single"], tmp_path / "a.tsv"
    table.write_text(f"a\tlabel\none\t{LABELS[0]}\ntwo\t-1\nthree\t{LABELS[1]}\n")
    command = ["--path", str(case.path), "--input", str(table), "--label", "label"]
    assert predict(command) == 2
    assert "if it means that there is none, give --no-label -1" in capsys.readouterr().err
    assert predict([*command, "--no-label", "-1"]) == 0
    out, said = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert "2 examples: loss" in said


def test_standard_input_has_no_columns_that_nobody_reads(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label or a number in front of a text is not taken for the text."""
    for kind, line, there, read in (("single", "0\tgood film", 2, 1), ("pair", "0\ta\tb", 3, 2)):
        path = str(cases[kind].path)
        as_input(monkeypatch, f"{line}\n")
        assert predict(["--path", path]) == 2
        out, said = capsys.readouterr()
        message = f"standard input:1: there are {there} columns, where {read} should be: say by --c"
        assert (out, message in said) == ("", True)
        as_input(monkeypatch, f"{line}\n")
        chosen = [str(i) for i in range(2, there + 1)]
        arguments = ["--keep-input", "--output-format", "jsonl", "--columns", *chosen]
        assert predict(["--path", path, *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["texts"] == line.split("\t")[1:]


def test_a_text_file_is_read_as_lines(cases: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    case, file = cases["single"], tmp_path / "new.txt"
    file.write_text("good film\nbad\n")
    command = ["--path", str(case.path), "--input", str(file)]
    assert predict([*command, "--keep-input"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        *("text1", "good film", "bad")
    ]
    file.write_text("0\tgood film\n")
    assert predict(command) == 2
    assert "there are 2 columns, where 1 should be: say by --col" in capsys.readouterr().err


def test_numbers_of_columns_are_not_those_of_another_table(
    cases: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    """A header is not predicted as an example."""
    case, data, table = cases["single"], tmp_path / "data", tmp_path / "test.tsv"
    shutil.copytree(case.data, data)
    replace(DataRecord.load(data), columns=["1"]).save(data)
    table.write_text("sentence\ngood film\n")
    command = ["--path", str(case.path), "--data", str(data), "--input"]
    assert predict([*command, str(table)]) == 2
    asked = f"give --columns, the columns of {table} with the texts"
    assert asked in capsys.readouterr().err
    assert predict([*command, str(table), "--columns", "sentence"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    lines = tmp_path / "test.jsonl"
    lines.write_text('{"sentence": "good film"}\n')
    assert predict([*command, str(lines)]) == 2
    assert "give --columns" in capsys.readouterr().err
    assert predict([*command, str(lines), "--columns", "1"]) == 2
    assert "JSON-lines have no numbers of columns: give names" in capsys.readouterr().err


def test_names_of_classes_do_not_break_the_table(cases: dict[str, Any], capsys: Any) -> None:
    case = cases["single"]
    command = ["--path", str(case.path), "--input", str(case.table), "--columns", "a"]
    assert predict([*command, "--labels", "no\tn", " maybe\r\nm ", "yes"]) == 0
    head, *lines = capsys.readouterr().out.split("\n")[:-1]
    assert head.split("\t") == ["label", "p(no n)", "p(maybe m)", "p(yes)"]
    assert {line.count("\t") for line in lines} == {3}
    assert len(lines) == len(case.rows)


def test_json_lines_may_be_in_a_file_that_is_called_json(
    cases: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    """As pandas and datasets write them."""
    path = tmp_path / "rows.json"
    path.write_text('{"t": "a"}\n{"t": "b"}\n')
    usual = {"path": cases["single"].path, "input": path}
    assert predict(command_line({**usual, "columns": "t"})) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert predict(command_line(usual)) == 2
    assert "give another file, or --format, such as jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["o.json", "o.csv", "o.conll"])
def test_output_is_of_the_kind_that_its_name_says(
    name: str, cases: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    case, out = cases["single"], tmp_path / name
    command = ["--path", str(case.path), "--input", str(case.table), "--output", str(out)]
    assert predict(command) == 2
    assert f"{name}: what is written is TSV or JSON-lines: end" in capsys.readouterr().err
    assert not out.exists()
    assert predict([*command, "--output-format", "jsonl"]) == 0
    assert "label" in json.loads(out.read_text().splitlines()[0])


def test_output_is_written_whole_or_not_at_all(cases: dict[str, Any], tmp_path: Path) -> None:
    case, out = cases["single"], tmp_path / "out.jsonl"
    out.touch()  # an empty one is as good as none
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": "fine"}\n{"b": "not"}\n')
    command = ["--path", str(case.path), "--columns", "a", "--output", str(out)]
    assert predict([*command, "--input", str(broken)]) == 2
    assert out.read_text() == ""
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    assert predict([*command, "--input", str(case.table)]) == 0
    assert len(out.read_text().splitlines()) == len(case.rows)
    assert json.loads(out.read_text().splitlines()[0])["label"] in LABELS


def test_any_number_of_rows(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alum_fairseq.predict.command._CHUNK", 4)
    case = cases["single"]
    expected = [p.label for p in Predictor.load(case.path).predict(texts(case))]
    assert predict(["--path", str(case.path), "--input", str(case.table)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split("\t")[0] for line in lines] == expected
    as_input(monkeypatch, "")
    assert predict(["--path", str(case.path)]) == 0
    out, said = capsys.readouterr()
    assert (out, "standard input holds no example: nothing was predicted" in said) == ("", True)


def test_data_of_fairseqs_own_pipeline(cases: dict[str, Any], tmp_path: Path) -> None:
    """Without alum-prepare's record the labels are those of the dictionary."""
    case = cases["single"]
    for name in ("input0", "label"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dict.txt").write_text((case.data / name / "dict.txt").read_text())
    with pytest.raises(UsageError, match="has no vocabulary, which alum-prepare makes"):
        Predictor.load(case.path, data=tmp_path)
    vocabulary = case.data / "vocabulary"
    bare = Predictor.load(case.path, data=tmp_path, vocabulary=vocabulary)
    full = Predictor.load(case.path)
    assert torch.equal(bare.logits(texts(case)), full.logits(texts(case)))
    renamed = Predictor.load(case.path, tmp_path, vocabulary, labels=["A", "B", "C"])
    assert renamed.problem.labels == ("A", "B", "C")


def test_a_head_on_a_pretrained_model(cases: dict[str, Any], tmp_path: Path) -> None:
    """As roberta.large.mnli is: a masked-LM checkpoint that holds a head."""
    case = cases["pair"]
    state = torch.load(case.path)
    state["cfg"]["task"] = {"_name": "masked_lm", "data": "/far/away", "tokens_per_sample": 40}
    prefix = "classification_heads."
    for name in [name for name in state["model"] if name.startswith(prefix)]:
        weight = state["model"].pop(name)
        state["model"][prefix + "mnli" + name[name.index(".", len(prefix)) :]] = weight
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "dict.txt").write_text((case.data / "input0/dict.txt").read_text())
    command = (tmp_path / "model.pt", tmp_path, case.data / "vocabulary")
    found = Predictor.load(*command)
    assert (found.checkpoint.head, found.problem.labels) == ("mnli", ("0", "1", "2"))
    expected = Predictor.load(case.path).logits(texts(case))
    assert torch.equal(found.logits(texts(case)), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": "no.pt"}, "no.pt does not exist"),
        ({"path": "DATA/dict.txt"}, "dict.txt is no checkpoint, or was cut short"),
        ({"data": "nowhere"}, "--data nowhere is no folder"),
        ({"vocabulary": "nowhere"}, "nowhere does not exist"),
        ({"vocabulary": "OTHER"}, "is not the dictionary that the model was trained with"),
        ({"head": "sst"}, "has no head sst: give --head, one of sentence_classification_head"),
        ({"labels": "a"}, "has 3, not the 1 of --labels"),
        ({"max-tokens": 0}, "--max-tokens is 0: it must be 1 or more"),
        ({"input": "nowhere.tsv"}, "nowhere.tsv does not exist"),
        ({"columns": "b"}, ":1: there is no b: there are a, label"),
        ({"label": "a"}, ":1: a and a name the same column: every text, and the label, must"),
        (
            {"columns": "label", "label": "a"},
            r":1: the label '.*' is none of the classes \(no, well, maybe, yes\)",
        ),
        ({"output": "DATA"}, "is a folder, not a file"),
        ({"output": "DATA/dict.txt/out"}, "dict.txt/out cannot be written"),
    ],
)
def test_wrong_usage(
    wrong: dict[str, Any],
    message: str,
    cases: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = cases["single"]
    (tmp_path / "dict.txt").write_text("other 1\n")
    dictionary = case.data / "input0/dict.txt"
    places = {"DATA/dict.txt": dictionary, "DATA/dict.txt/out": dictionary / "out"}
    places |= {"OTHER": tmp_path, "DATA": case.data}
    usual = {"path": case.path, "input": case.table, "columns": "a"}
    chosen = {name: places.get(value, value) for name, value in {**usual, **wrong}.items()}
    assert predict(command_line(chosen)) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert re.search(message, said), said
    assert len(said.splitlines()) == 1


def test_wrong_number_of_texts(cases: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="an example has 2 texts, of those trained on 1"):
        Predictor.load(cases["single"].path).predict([("a", "b")])
    with pytest.raises(UsageError, match="chooses among 3 candidates: an example has 4 texts"):
        Predictor.load(cases["choices"].path).predict([("a", "b")])


def test_a_text_alone_is_no_list_of_examples(cases: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is the text 'A good film\.': give a list"):
        Predictor.load(cases["single"].path).predict("A good film.")


def test_a_model_that_was_not_fine_tuned(cases: dict[str, Any], tmp_path: Path) -> None:
    state = torch.load(cases["single"].path)
    state["cfg"]["task"] = {"_name": "masked_lm", "data": "", "tokens_per_sample": 40}
    state["model"] = {k: v for k, v in state["model"].items() if "classification" not in k}
    torch.save(state, tmp_path / "model.pt")
    data = cases["single"].data / "input0"
    with pytest.raises(UsageError, match="has no classification head: it was not fine-tuned"):
        Predictor.load(tmp_path / "model.pt", data)


def test_as_a_command(cases: dict[str, Any]) -> None:
    case = cases["single"]
    done = run_tool("alum-predict", "--path", case.path, "--input", case.table)
    assert len(done.stdout.splitlines()) == 2 + len(case.rows)  # and what was cut
    assert run_tool("alum-predict", "--path", "no.pt", check=False).returncode == 2
    assert "--max-tokens" in run_tool("alum-predict", "--help").stdout
