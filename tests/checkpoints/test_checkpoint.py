"""A checkpoint with all that belongs to it, and where each part is looked for."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.options import SMALL_RUN, command_line
from support.quick_train import run_forked
from support.untrained import LABELS, MODEL

from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.checkpoints.reading import heads_of
from alum_fairseq.data.layout import Layout
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import Classification, MultipleChoice, Regression

HEAD = "sentence_classification_head"
PREFIX = "classification_heads."
State = dict[str, Any]


@pytest.fixture
def changed(cases: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the checkpoint of a case anew, after a change."""

    def write(change: Callable[[State], None], kind: str = "single") -> Path:
        state = torch.load(cases[kind].path)
        change(state)
        torch.save(state, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return write


def named(*heads: str) -> Callable[[State], None]:
    """Gives the only head other names, under all of which it is there."""

    def change(state: State) -> None:
        weights = state["model"]
        head = {n: weights.pop(n) for n in list(weights) if n.startswith(PREFIX)}
        for name in heads:
            weights |= {n.replace(HEAD, name): weight.clone() for n, weight in head.items()}

    return change


def test_all_that_belongs_to_it(case: Any) -> None:
    found = Checkpoint(case.path)
    problem = {
        "regression": Regression(scale=5.0),
        "choices": MultipleChoice(("0", "1", "2")),
    }.get(case.kind, Classification(tuple(LABELS)))
    saved = torch.load(case.path)["model"]
    assert found.weights.keys() == saved.keys()
    outputs = 3 if isinstance(problem, Classification) and case.kind != "choices" else 1
    assert (found.head, found.heads) == (HEAD, {HEAD: outputs})
    assert found.problem == problem
    assert (found.data, found.vocabulary.folder) == (case.data, case.data / "vocabulary")
    assert found.record.problem == problem
    assert found.layout == Layout(problem, max_positions=40)
    assert found.dictionary.symbols == [*found.vocabulary.dictionary.symbols, "<mask>"]
    weights = found.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in saved.items())
    assert not found.model.training


def test_nothing_is_asked_for_before_its_time(cases: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state = torch.load(cases["single"].path)
    state["cfg"]["task"]["data"] = "/far/away"
    torch.save(state, path)
    found = Checkpoint(path)
    assert (found.head, found.data, found.record, found.labels) == (HEAD, None, None, None)
    assert found.problem == Classification(("0", "1", "2"))
    for needed in ("vocabulary", "model", "dictionary", "layout"):
        with pytest.raises(UsageError, match="was trained on /far/away, which is not here: give"):
            getattr(found, needed)


def finetuning(classes: int = 3) -> dict[str, Any]:
    """The options of one update, saved in saved/."""
    name = "alum_sentence_prediction"
    shape = {
        key: None for key in SMALL_RUN if key.startswith("tokens") or key == "sample-break-mode"
    }
    options = {**SMALL_RUN, **MODEL, **shape, "task": name, "criterion": name}
    options |= {"save-dir": "saved", "max-update": 1, "init-token": 0, "separator-token": 2}
    return {**options, "num-classes": classes}


def test_what_training_saves_is_found_from_wherever_it_is_used(
    cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on data/; used where there is another data/, of other classes."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        shutil.copytree(cases["single"].data, folder / "data")
    record = elsewhere / "data" / "alum-prepare.json"
    record.write_text(record.read_text().replace(f'"{LABELS[0]}"', '"other"'))
    options = finetuning()
    run_forked("train", ["data", *command_line(options)], here, check=True)
    monkeypatch.chdir(elsewhere)
    found = Checkpoint(here / "saved" / "checkpoint_last.pt")
    assert found.data == here / "data"
    assert found.labels == tuple(LABELS)
    assert Checkpoint(found.path, labels=["a", "b", "c"]).labels == ("a", "b", "c")
    with pytest.raises(UsageError, match=f"has them in the order {' '.join(LABELS)}: leave"):
        _ = Checkpoint(found.path, labels=LABELS[::-1]).labels
    (here / "data").rename(here / "moved")  # the names of the classes need no data
    assert Checkpoint(found.path).labels == tuple(LABELS)
    with pytest.raises(UsageError, match=f"has the classes {LABELS[0]}, .* has other"):
        _ = Checkpoint(found.path, data=elsewhere / "data").labels


# --------------------------------------------------------------------------------------- the head


def test_the_head_that_was_trained(changed: Any) -> None:
    path = changed(named("other", HEAD))
    assert Checkpoint(path).head == HEAD
    assert Checkpoint(path, head="other").head == "other"
    with pytest.raises(UsageError, match=f"has no head x: give --head, one of other, {HEAD}"):
        _ = Checkpoint(path, head="x").head


def test_the_head_of_a_model_that_was_not_trained_for_it(changed: Any) -> None:
    def pretrained(*heads: str) -> Path:
        def change(state: State) -> None:
            named(*heads)(state)
            state["cfg"]["task"]["_name"] = "masked_lm"

        return changed(change)

    assert Checkpoint(pretrained("mnli")).head == "mnli"
    with pytest.raises(UsageError, match="has several heads: give --head, one of large, small"):
        _ = Checkpoint(pretrained("small", "large")).head
    bare = Checkpoint(pretrained())
    assert bare.head is None
    with pytest.raises(UsageError, match="has no classification head: it was not fine-tuned"):
        _ = bare.problem
    with pytest.raises(UsageError, match="has no head x: give --head, one of none"):
        _ = Checkpoint(pretrained(), head="x").head


def test_heads_by_their_weights() -> None:
    weight = torch.zeros(4, 2)
    names = ("b.dense.weight", "b.out_proj.weight", "a.out_proj.weight", "broken.dense.weight")
    assert heads_of({PREFIX + name: weight for name in names}) == {"a": 4, "b": 4, "broken": 0}
    assert heads_of({"encoder.lm_head.weight": weight}) == {}


def test_a_regression_that_was_not_trained_here(changed: Any) -> None:
    """alum-convert says so in the options of a checkpoint whose task is masked_lm."""

    def change(state: State) -> None:
        options = {**state["cfg"]["model"].__dict__} if state["cfg"] else {}
        state["args"] = Namespace(
            **{**options, "task": "masked_lm", "data": ".", "regression_target": True}
        )
        state["cfg"] = None

    assert Checkpoint(changed(change, "regression")).problem == Regression()


# ------------------------------------------------------------------------------------- the labels


def test_labels_of_whoever_asks(cases: dict[str, Any]) -> None:
    path = cases["single"].path
    assert Checkpoint(path, labels=["a", "b", "c"]).problem == Classification(("a", "b", "c"))
    for labels, message in {
        ("a", "b"): "has 3, not the 2 of --labels",
        ("a", "b", "a"): "--labels a b a: one of them comes twice",
    }.items():
        with pytest.raises(UsageError, match=message):
            _ = Checkpoint(path, labels=labels).problem
    message = "has no labels: it was trained for regression, not the 2 of --labels"
    with pytest.raises(UsageError, match=message):
        _ = Checkpoint(cases["regression"].path, labels=["a", "b"]).problem
    choices = Checkpoint(cases["choices"].path, labels=["a", "b", "c"])
    assert choices.problem == MultipleChoice(("a", "b", "c"))


def test_labels_of_the_data(cases: dict[str, Any], tmp_path: Path) -> None:
    path, data = cases["single"].path, tmp_path / "data"
    (data / "label").mkdir(parents=True)
    assert Checkpoint(path, data).labels is None
    assert Checkpoint(path, data).problem.labels == ("0", "1", "2")
    # fairseq-preprocess fills dictionaries up.
    (data / "label/dict.txt").write_text("x 3\ny 2\nz 1\nmadeupword0000 0\n")
    assert Checkpoint(path, data).problem.labels == ("x", "y", "z")
    (data / "label/dict.txt").write_text("x 3\ny 2\n")
    with pytest.raises(UsageError, match="data has 2 labels, the head 3 classes"):
        _ = Checkpoint(path, data).problem
    shutil.copy(cases["single"].data / "alum-prepare.json", data)
    assert Checkpoint(path, data).problem.labels == tuple(LABELS)


# ------------------------------------------------------------------------- data and vocabulary


def test_where_the_data_are(cases: dict[str, Any], changed: Any, tmp_path: Path) -> None:
    case = cases["single"]
    assert Checkpoint(case.path).data == case.data
    assert Checkpoint(case.path, tmp_path).data == tmp_path
    with pytest.raises(UsageError, match="--data nowhere is no folder"):
        _ = Checkpoint(case.path, "nowhere").data
    for gone in ("/far/away", ".", ""):
        path = changed(lambda state, gone=gone: state["cfg"]["task"].update(data=gone))
        assert Checkpoint(path).data is None
    (tmp_path / "dict.txt").write_text("a 1\n")
    assert Checkpoint(path).data == tmp_path


def test_where_the_vocabulary_is(cases: dict[str, Any], tmp_path: Path) -> None:
    case = cases["single"]
    asked = Checkpoint(case.path, tmp_path, case.data / "vocabulary")
    assert asked.vocabulary.folder == case.data / "vocabulary"
    message = "has no vocabulary, which alum-prepare makes, and does not say how its text was cut"
    with pytest.raises(UsageError, match=message):
        _ = Checkpoint(case.path, tmp_path).vocabulary
    (tmp_path / "dict.txt").write_text("a 1\n")
    with pytest.raises(UsageError, match=message):  # words, or subwords of files that are not here?
        _ = Checkpoint(case.path, tmp_path).vocabulary
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Checkpoint(case.path, tmp_path).vocabulary.bpe == "alum_tokenizers"
    shutil.copytree(case.data / "vocabulary", tmp_path / "vocabulary")
    assert Checkpoint(case.path, tmp_path).vocabulary.folder == tmp_path / "vocabulary"


# ------------------------------------------------------------------------------- strangers' options


@pytest.mark.parametrize("wrong", [-1, 10**6, "0", 1.0, True])
def test_symbols_that_are_none(wrong: Any, changed: Any) -> None:
    found = Checkpoint(changed(lambda state: state["cfg"]["task"].update(init_token=wrong)))
    with pytest.raises(UsageError, match=r"its init_token is .*: it must be the number of a sym"):
        found.symbol("init_token", 0, 10)


def test_symbols_that_are_left_out(changed: Any) -> None:
    found = Checkpoint(changed(lambda state: state["cfg"]["task"].update(init_token=None)))
    assert (found.layout.init_token, found.layout.separator_token) == (None, 2)


@pytest.mark.parametrize("wrong", [None, "3", 0, 2.5])
def test_choices_without_a_number(wrong: Any, changed: Any) -> None:
    path = changed(lambda state: state["cfg"]["task"].update(num_classes=wrong), "choices")
    with pytest.raises(UsageError, match=r"its num_classes is .*: it must be a number"):
        _ = Checkpoint(path).problem


def test_a_checkpoint_that_says_nothing(changed: Any) -> None:
    path = changed(lambda state: state.update(cfg=None, args=None))
    with pytest.raises(UsageError, match="no checkpoint of fairseq: it has neither 'cfg' nor 'arg"):
        Checkpoint(path)


def test_another_run_s_checkpoint_is_not_gone_on_from(
    cases: dict[str, Any], tmp_path: Path
) -> None:
    first = {**finetuning(classes=1), "regression-target": True}
    data = {kind: str(cases[kind].data) for kind in ("regression", "single")}
    run_forked("train", [data["regression"], *command_line(first)], tmp_path, check=True)
    again = run_forked("train", [data["single"], *command_line(finetuning())], tmp_path, False)
    assert again.returncode
    said = "has a head of 1 classes, this run one of 3: it is another run's checkpoint, so give"
    assert said in again.stdout.splitlines()[-1]
