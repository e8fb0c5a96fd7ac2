"""A stranger's files run no code, whatever of ours reads them; each would, read by the trusting."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import runpy
import shutil
import sys
import tarfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fairseq
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, file_utils, options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.roberta import RobertaModel
from fairseq.modules.multihead_attention import MultiheadAttention
from fairseq.utils import eval_bool, eval_str_list, import_user_module
from safetensors.torch import load_file
from support.hostile import (
    FILES,
    PAYLOADS,
    PLACES,
    Call,
    make_folder,
    npy,
    run_by_the_trusting,
    saved,
    script,
)
from support.in_process import everything_in, fairseq_train, run_command
from support.options import SMALL_MODEL, command_line
from support.places import PLUGIN, ROOT
from support.untrained import TOKENS, make_token_case

from alum_fairseq import UsageError, compat, requirements
from alum_fairseq.checkpoints.model import load_model
from alum_fairseq.checkpoints.reading import load_state
from alum_fairseq.convert.command import main as convert
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.command import main as predict
from alum_fairseq.prepare.command import main as prepare
from alum_fairseq.robustness.command import main as robustness

sys.path.insert(0, str(ROOT / "examples/presets"))
import compare


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The folder that hostile code would make."""
    return tmp_path / f"made_by_a_stranger_{tmp_path.name}"


@pytest.fixture(scope="module")
def sound(cases: dict[str, Any]) -> dict[str, Any]:
    """What is in a checkpoint that is all right."""
    return torch.load(cases["single"].path)


def fires(path: Path, target: Path) -> None:
    """Make sure that the file is hostile; leave no trace of it."""
    run_by_the_trusting(path)
    assert target.exists(), "the payload does nothing: a test of it would show nothing"
    target.rmdir()
    for name in [name for name in sys.modules if name.endswith(target.name)]:
        del sys.modules[name]  # a second import would do nothing
    import_user_module.memo.clear()


# Every way in which a checkpoint is read. Ours end in a UsageError, fairseq's own in any error.


@pytest.fixture(scope="module")
def task(cases: dict[str, Any]) -> Any:
    """A task of ours with its model's options, as fairseq-train makes them."""
    command = {
        **{"task": "alum_sentence_prediction", "criterion": "alum_sentence_prediction"},
        **{"arch": "roberta", "encoder-layers": 2, "encoder-embed-dim": 32, "max-positions": 40},
        **{"encoder-ffn-embed-dim": 64, "encoder-attention-heads": 4, "num-classes": 3},
        **{"user-dir": PLUGIN, "optimizer": "adam"},
    }
    args = options.parse_args_and_arch(
        options.get_training_parser(), [str(cases["single"].data), *command_line(command)]
    )
    cfg = convert_namespace_to_omegaconf(args)
    return tasks.setup_task(cfg.task), cfg


def start(task: Any, **places: str) -> None:
    """What fairseq-train does before it trains: build the model, and look where it starts from."""
    made, cfg = task
    chosen = {"alum_save_dir": "/nowhere", "alum_restore_file": "checkpoint_last.pt"}
    chosen |= {"alum_finetune_from_model": None, **places}
    before = {name: made.cfg[name] for name in chosen}
    try:
        made.cfg.update(chosen)
        made.build_model(cfg.model)
    finally:
        made.cfg.update(before)


def our_readers(path: Path, data: Path, task: Any, output: Path) -> dict[str, Callable[[], Any]]:
    def command(main: Callable[[list[str]], int], *words: Any) -> Callable[[], None]:
        def run() -> None:
            raise UsageError(run_command(main, *words).error)

        return run

    return {
        "load_state": lambda: load_state(path),
        "Predictor": lambda: Predictor.load(path, data),
        "alum-predict": command(predict, "--path", path, "--data", data, "--input", os.devnull),
        "alum-robustness": command(
            robustness, "--path", path, "--data", data, "--output", output / "report"
        ),
        "alum-convert": command(convert, "to-hf", path, output / "hf", "--data", data),
        "compare.py": command(compare.main, path, data),
        "resume": lambda: start(task, alum_save_dir=str(path.parent)),
        "--restore-file": lambda: start(task, alum_restore_file=str(path)),
        "--finetune-from-model": lambda: start(task, alum_finetune_from_model=str(path)),
    }


def fairseqs_readers(path: Path) -> dict[str, Callable[[], Any]]:
    """Of what the plugin must not have made less safe."""
    return {
        "torch.load": lambda: torch.load(path),
        "load_checkpoint_to_cpu": lambda: checkpoint_utils.load_checkpoint_to_cpu(str(path)),
        "load_model_ensemble": lambda: checkpoint_utils.load_model_ensemble([str(path)]),
        "from_pretrained": lambda: RobertaModel.from_pretrained(
            str(path.parent), path.name, bpe=None
        ),
    }


def assert_runs_nothing(path: Path, data: Path, task: Any, target: Path, said: str | None) -> None:
    """Let everything read a hostile checkpoint; ours must say what is wrong with it."""
    fires(path, target)
    before = everything_in(path.parent)
    for name, read in our_readers(path, data, task, target.parent).items():
        with pytest.raises(UsageError) as found:
            read()
        assert not target.exists(), f"{name} ran it"
        assert str(path) in str(found.value), name
        assert "\n" not in str(found.value), name
        if said is not None:
            assert said in str(found.value), name
    for name, read in fairseqs_readers(path).items():
        with pytest.raises(Exception):  # noqa: B017, PT011
            read()
        assert not target.exists(), f"{name} ran it"
    assert everything_in(path.parent) == before


HOSTILE = [
    *(("os.mkdir", place, "new") for place in PLACES),
    *(("os.mkdir", place, "old") for place in ("instead of all", "in args")),
    *(
        pytest.param("os.mkdir", place, "old", marks=pytest.mark.slow)
        for place in PLACES
        if place not in ("instead of all", "in args")
    ),
    *((payload, "an entry", "new") for payload in PAYLOADS if payload != "os.mkdir"),
    *(("os.mkdir", name, "by hand") for name in FILES),
]


@pytest.mark.parametrize(("payload", "place", "form"), HOSTILE)
def test_checkpoints(
    payload: str,
    place: str,
    form: str,
    sound: dict[str, Any],
    cases: dict[str, Any],
    task: Any,
    tmp_path: Path,
    target: Path,
) -> None:
    thing = PAYLOADS[payload](target)
    if form == "by hand":
        content = FILES[place](sound, thing)
    else:
        state = PLACES[place](copy.deepcopy(sound), thing)
        content = saved(state, _use_new_zipfile_serialization=form == "new")
    (tmp_path / "model").mkdir()
    path = tmp_path / "model/checkpoint_last.pt"
    path.write_bytes(content)
    (path.parent / "dict.txt").write_bytes((cases["single"].data / "input0/dict.txt").read_bytes())
    said = None if form == "by hand" else "objects other than weights, whose loading could run code"
    assert_runs_nothing(path, cases["single"].data, task, target, said)


@pytest.mark.parametrize("kind", TOKENS)
def test_checkpoints_of_questions_and_tags(
    kind: str, task: Any, tmp_path: Path, target: Path
) -> None:
    case = make_token_case(kind, tmp_path)
    state = PLACES["an entry"](torch.load(case.path), make_folder(target))
    path = tmp_path / "model/checkpoint_last.pt"
    path.parent.mkdir()
    path.write_bytes(saved(state))
    said = "objects other than weights, whose loading could run code"
    assert_runs_nothing(path, case.data, task, target, said)


def test_the_sound_one_is_read(cases: dict[str, Any], task: Any, tmp_path: Path) -> None:
    """Else the tests above might pass for another reason."""
    case = cases["single"]
    path = tmp_path / "checkpoint_last.pt"
    path.write_bytes(case.path.read_bytes())
    readers = our_readers(path, case.data, task, tmp_path)
    for name in ("load_state", "Predictor", "resume", "--restore-file", "--finetune-from-model"):
        readers[name]()
    table = ("--input", case.table, "--columns", "a")
    assert run_command(predict, "--path", path, *table).status == 0
    assert run_command(convert, "to-hf", path, tmp_path / "hf", "--data", case.data).status == 0


# fairseq-train itself, with our tasks and with its own.

TRAINING = {
    **{"user-dir": PLUGIN, "criterion": "alum_mlm", **SMALL_MODEL, "batch-size": 8, "cpu": True},
    **{"optimizer": "adam", "lr": 1e-3, "max-update": 1, "num-workers": 0, "no-save": True},
    **{"disable-validation": True, "sample-break-mode": "none"},
}


@pytest.mark.parametrize("task_name", ["alum_masked_lm", "masked_lm"])
@pytest.mark.parametrize("way", ["resume", "restore-file", "finetune-from-model"])
def test_training_starts_from_none(
    task_name: str, way: str, sound: dict[str, Any], mlm_data: Path, tmp_path: Path, target: Path
) -> None:
    path = tmp_path / "save/checkpoint_last.pt"
    path.parent.mkdir()
    torch.save(PLACES["in args"](sound, make_folder(target)), path)
    fires(path, target)
    save = path.parent if way == "resume" else tmp_path / "elsewhere"
    words = {**TRAINING, "task": task_name, "save-dir": save}
    words |= {} if way == "resume" else {way: path}
    if task_name == "alum_masked_lm":
        done = fairseq_train(mlm_data, *command_line(words))
        assert done.error == (
            f"{path} holds objects other than weights, whose loading could run code: it is not "
            "loaded"
        )
        assert not done.began
    else:
        with pytest.raises(pickle.UnpicklingError):
            fairseq_train(mlm_data, *command_line(words))
    assert not target.exists()


# Options that fairseq evaluates as Python, or imports.


def code(target: Path) -> str:
    return f"__import__('os').mkdir({str(target)!r})"


def with_options(sound: dict[str, Any], old: bool, **given: Any) -> dict[str, Any]:
    """The sound checkpoint with further options of its model, as they were saved then and now."""
    state = copy.deepcopy(sound)
    groups = state["cfg"]
    if not old:
        vars(groups["model"]).update(given)
        groups["task"].update({k: v for k, v in given.items() if k == "data"})
        return state
    del state["cfg"]
    flat = {**groups["task"], **vars(groups["model"]), "data": groups["task"]["data"]}
    flat |= {"task": groups["task"]["_name"], "criterion": groups["criterion"]["_name"]}
    flat |= {"arch": "roberta", **given}
    return {**state, "args": Namespace(**{k: v for k, v in flat.items() if k != "_name"})}


@pytest.mark.parametrize(
    "old", [pytest.param(True, marks=pytest.mark.slow), False], ids=["args", "cfg"]
)
@pytest.mark.parametrize(
    "options_of",
    [
        lambda text: {"encoder_xformers_att_config": text},
        lambda text: {"arch": "fconv", "_name": "fconv", "encoder_layers": text},
        lambda text: {"arch": "fconv_lm", "_name": "fconv_lm", "decoder_layers": text},
        lambda text: {"arch": "wav2vec2", "_name": "wav2vec2", "conv_feature_layers": text},
    ],
    ids=["roberta", "fconv", "fconv_lm", "wav2vec2"],
)
def test_options_are_not_evaluated(
    options_of: Callable[[str], dict[str, Any]],
    old: bool,
    sound: dict[str, Any],
    cases: dict[str, Any],
    tmp_path: Path,
    target: Path,
) -> None:
    path, data = tmp_path / "model.pt", cases["single"].data
    torch.save(with_options(sound, old, **options_of(code(target))), path)
    for read in (
        lambda: load_model(load_state(path), path, data=str(data)),
        lambda: Predictor.load(path, data),
    ):
        with pytest.raises(UsageError, match=r"not a RoBERTa|must be numbers, texts or lists"):
            read()
        assert not target.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011
        RobertaModel.from_pretrained(str(tmp_path), "model.pt", str(data), bpe=None)
    assert not target.exists()


def test_fairseq_without_the_plugin_evaluates_an_option_of_every_roberta(target: Path) -> None:
    """Else the test above shows nothing."""
    ours = vars(fairseq.utils).pop("eval")
    try:
        with pytest.raises((ImportError, AttributeError)):  # of what it does with the value
            MultiheadAttention(4, 2, xformers_att_config=f"{code(target)} or 1")
    finally:
        fairseq.utils.eval = ours
    assert target.exists()


def test_every_file_of_fairseq_that_evaluates_does_so_by_our_rule() -> None:
    root = Path(fairseq.__file__).parent
    found = 0
    for path in root.rglob("*.py"):
        inside = path.relative_to(root).with_suffix("")
        if inside.parts[0] in ("examples", "benchmark"):  # programs, not the library
            continue
        if re.search(r"(?<![\w.])eval\(", path.read_text()):
            module = sys.modules[".".join(("fairseq", *inside.parts))]
            assert module.eval is compat.evaluate_literal, path
            found += 1
    assert found > 10


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(0.9, 0.98)", (0.9, 0.98)),
        ("1e-4", 1e-4),
        ("[(512, 10, 5)] + [(512, 3, 2)] * 2", [(512, 10, 5), (512, 3, 2), (512, 3, 2)]),
        ("[-1/2, 3 - 1]", [-0.5, 2]),
        ("{'name': 'linformer', 'seq_len': 256}", {"name": "linformer", "seq_len": 256}),
        ("True", True),
        (" 4 ", 4),
    ],
)
def test_options_have_the_values_that_fairseq_gives_them(text: str, value: Any) -> None:
    assert compat.evaluate_literal(text) == value == eval(text.strip())
    assert type(compat.evaluate_literal(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("print(1)", "().__class__", "[x for x in (1,)]", "lambda: 1", "a", "(", "1 if 1 else 2"),
        *("f'{1}'", "[1][0]", "(a := 1)", "9 ** 9", "", "[] - 1", "1 / 0", "('" + "(" * 10_000),
    ],
    ids=lambda text: text[:20],
)
def test_code_is_no_option(text: str) -> None:
    with pytest.raises(UsageError, match="no other code") as found:
        compat.evaluate_literal(text)
    assert len(str(found.value)) < 400
    with pytest.raises(UsageError):
        eval_str_list(text)
    with pytest.raises(UsageError):
        eval_bool(text)


@pytest.mark.parametrize("old", [True, False], ids=["args", "cfg"])
def test_a_user_dir_in_a_checkpoint_is_not_imported(
    old: bool, sound: dict[str, Any], cases: dict[str, Any], tmp_path: Path, target: Path
) -> None:
    folder = str(script(target).parent)
    state = with_options(sound, old, user_dir=folder)
    if not old:
        state["cfg"]["common"]["user_dir"] = folder
    path, data = tmp_path / "model.pt", cases["single"].data
    torch.save(state, path)
    Predictor.load(path, data)
    RobertaModel.from_pretrained(str(tmp_path), "model.pt", str(data), bpe=None)
    assert run_command(convert, "to-hf", path, tmp_path / "hf", "--data", data).status == 0
    assert not target.exists()
    import_user_module(Namespace(user_dir=folder))
    assert target.exists()


@pytest.mark.parametrize("old", [True, False], ids=["args", "cfg"])
@pytest.mark.parametrize(
    "text", ["${oc.env:ALUM_SECRET}", "x${oc.decode:${oc.env:ALUM_SECRET}}", "${common.seed}"]
)
def test_options_do_not_read_the_environment(
    text: str,
    old: bool,
    sound: dict[str, Any],
    cases: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALUM_SECRET", str(tmp_path))
    path = tmp_path / "model.pt"
    torch.save(with_options(sound, old, data=text), path)
    for data in ((), ("--data", cases["single"].data)):
        error = run_command(predict, "--path", path, "--input", os.devnull, *data).error
        assert f"one of its options is {text!r}, which would read from this machine" in error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"_name": "audio_pretraining"}, "was trained by the task audio_pretraining: known are"),
        ({"_name": "translation"}, "was trained by the task translation: known are"),
        ({"_name": None}, "was trained by the task None: known are"),
    ],
)
def test_a_checkpoint_chooses_among_few_tasks(
    given: dict[str, Any], words: str, sound: dict[str, Any], cases: dict[str, Any], tmp_path: Path
) -> None:
    state = copy.deepcopy(sound)
    state["cfg"]["task"].update(given)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=words):
        Predictor.load(tmp_path / "model.pt", cases["single"].data)


# numpy, whose numbers checkpoints may hold.


@pytest.mark.parametrize(
    "dtype", ["O", "V8", "S8", "i8", "f4", "M8[s]", [("a", "O")], "f8,O", {"names": ["a"]}], ids=str
)
def test_of_numpy_one_type_alone_is_read(dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    scalar = np.float64().__reduce__()[0]
    torch.save({"best": Call(scalar, Call(np.dtype, dtype, False, True), bytes(8))}, path)
    with pytest.raises(pickle.UnpicklingError, match="not an allowed global"):
        torch.load(path)


@pytest.mark.parametrize("value", [0.5, -1e300, float("inf"), 0.0])
@pytest.mark.parametrize("order", "<>")
def test_numbers_of_numpy_are_read_as_they_were(value: float, order: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"best": np.array([value], dtype=f"{order}f8")[0]}, path)
    found = torch.load(path)["best"]
    assert (found, type(found)) == (value, np.float64)
    dtype = np.dtype(f"{order}f8")
    function, _ = np.float64(value).__reduce__()
    torch.save({"best": Call(function, dtype, np.array([value], dtype).tobytes())}, path)
    assert torch.load(path)["best"] == value


@pytest.mark.parametrize("version", ["2.5.1", "2.5.1+cpu", "1.13.0", "2.0.0a0+gitabc"])
def test_a_torch_that_trusts_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match=r"needs torch 2\.6 or later, and finds .*: pip install"):
        requirements.require_fairseq()
    monkeypatch.setattr(torch, "__version__", "2.10.0+cu128")
    requirements.require_fairseq()


# Archives that from_pretrained unpacks.


def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "written_by_a_stranger"
    for name in ("safe", "trusting"):
        member = tarfile.TarInfo("../" * 20 + os.path.relpath(target, "/"))
        member.size = 2
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            archive.addfile(member, io.BytesIO(b"hi"))
    with pytest.raises(tarfile.OutsideDestinationError):
        file_utils.load_archive_file(str(tmp_path / "safe.tar.gz"))
    assert not target.exists()
    (tmp_path / "inside").mkdir()
    with tarfile.open(tmp_path / "trusting.tar.gz") as archive:
        archive.extractall(tmp_path / "inside", filter="fully_trusted")
    assert target.exists()


def test_a_good_archive_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/dict.txt").write_text("a 1\n")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model", "model")
    folder = Path(file_utils.load_archive_file(str(tmp_path / "model.tar.gz")))
    assert (folder / "dict.txt").read_text() == "a 1\n"


# Hugging Face's folders.


@pytest.fixture(scope="module")
def hf_folder(cases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder as our own command writes it."""
    folder = tmp_path_factory.mktemp("hf") / "model"
    case = cases["single"]
    assert run_command(convert, "to-hf", case.path, folder, "--data", case.data).status == 0
    return folder


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("place", ["instead of all", "an entry", "instead of a weight"])
@pytest.mark.parametrize("form", ["old", "new"])
def test_weights_of_hugging_face(
    place: str, form: str, hf_folder: Path, tmp_path: Path, target: Path
) -> None:
    folder = copy_of(hf_folder, tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = PLACES[place]({"model": weights}, make_folder(target))
    state = state["model"] if place == "instead of a weight" else state
    state = {**weights, "more": state["more"]} if place == "an entry" else state
    path = folder / "pytorch_model.bin"
    path.write_bytes(saved(state, _use_new_zipfile_serialization=form == "new"))
    fires(path, target)
    error = run_command(convert, "from-hf", folder, tmp_path / "out").error
    assert error.startswith(f"{path} is broken, or contains more than weights")
    assert not target.exists()
    assert not (tmp_path / "out").exists()


def test_code_in_a_folder_of_hugging_face_stays_there(
    hf_folder: Path, tmp_path: Path, target: Path
) -> None:
    folder = copy_of(hf_folder, tmp_path / "hf")
    (folder / "modeling.py").write_bytes(script(target).read_bytes())
    classes = {"AutoConfig": "modeling.C", "AutoModel": "modeling.M", "AutoTokenizer": "modeling.T"}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": classes, "trust_remote_code": True, "custom_pipelines": classes}
        (folder / name).write_text(json.dumps(content))
    done = run_command(convert, "from-hf", folder, tmp_path / "out")
    assert done.status == 0
    assert not target.exists()
    assert not any("modeling" in path.name for path in everything_in(tmp_path / "out"))
    assert not any(b"auto_map" in text for text in everything_in(tmp_path / "out").values())
    runpy.run_path(str(folder / "modeling.py"))
    assert target.exists()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "tokenizer_config.json", "model.safetensors"]
)
def test_pickles_by_the_names_of_hugging_face(
    name: str, hf_folder: Path, tmp_path: Path, target: Path
) -> None:
    folder = copy_of(hf_folder, tmp_path / "hf")
    (folder / name).write_bytes(pickle.dumps(make_folder(target)))
    fires(folder / name, target)
    assert str(folder / name) in run_command(convert, "from-hf", folder, tmp_path / "out").error
    assert not target.exists()
    assert not (tmp_path / "out").exists()


# Vocabularies and data.


@pytest.mark.parametrize(
    "names",
    [["dict.txt"], ["sentencepiece.bpe.model"], ["tokenizer.json"], ["encoder.json", "vocab.bpe"]],
    ids=str,
)
@pytest.mark.parametrize("kind", ["pickle", "archive", "array"])
def test_vocabularies(
    names: list[str], kind: str, cases: dict[str, Any], tmp_path: Path, target: Path
) -> None:
    folder = copy_of(cases["single"].data / "vocabulary", tmp_path / "vocabulary")
    content = {"pickle": pickle.dumps, "archive": saved, "array": npy}[kind](make_folder(target))
    for name in names:
        (folder / name).write_bytes(content)
    path = folder / names[0]
    if kind == "array":
        np.load(path, allow_pickle=True)
        target.rmdir()
    else:
        fires(path, target)
    table = ("--train", cases["single"].table, "--columns", "a", "--label", "label")
    error = run_command(prepare, *table, "--vocabulary", folder, "--output", tmp_path / "out").error
    assert str(folder) in error
    with pytest.raises(UsageError):
        Vocabulary.load(folder).encoder()
    assert not target.exists()
    assert not (tmp_path / "out").exists()


def data_copy(cases: dict[str, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(cases["single"].data, tmp_path / "data"))


DATA_FILES = [
    "alum-prepare.json",
    "input0/dict.txt",
    "input0/valid.idx",
    "label/dict.txt",
    "label/valid.idx",
    "vocabulary/dict.txt",
]


@pytest.mark.parametrize("name", DATA_FILES)
def test_data(name: str, cases: dict[str, Any], task: Any, tmp_path: Path, target: Path) -> None:
    data = data_copy(cases, tmp_path)
    content = pickle.dumps(make_folder(target))
    path = data / name
    path.write_bytes(content + bytes(max(0, len(path.read_bytes()) - len(content))))
    # What data may hold besides: fairseq reads none of it, unless it takes it for another kind.
    for other in ("valid.npy", "valid.fasta.idx.npy", "valid.bin.vocab", "valid.pt"):
        (path.parent / other).write_bytes(npy(make_folder(target)))
    fires(path, target)
    ended = run_command(
        *(robustness, "--path", cases["single"].path, "--data", data, "--quick"),
        *("--parts", "noise", "--examples", 4, "--output", tmp_path / "report"),
    )
    assert str(data) in ended.error
    assert not target.exists()
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("name", ["alum-prepare.json", "text/valid.jsonl", "vocabulary/dict.txt"])
@pytest.mark.parametrize("kind", TOKENS)
def test_data_of_questions_and_tags(kind: str, name: str, tmp_path: Path, target: Path) -> None:
    case = make_token_case(kind, tmp_path)
    given = ("--path", case.path, "--data", case.data)
    for path in (case.data / name, case.table):
        path.write_bytes(pickle.dumps(make_folder(target)))
        fires(path, target)
    for ended in (
        run_command(robustness, *given, "--quick", "--output", tmp_path / "report"),
        run_command(robustness, *given, "--input", case.table, "--output", tmp_path / "report"),
        run_command(predict, *given, "--input", case.table, "--output", tmp_path / "out.jsonl"),
    ):
        assert str(case.data) in ended.error or str(case.table) in ended.error
        assert ended.error.isprintable()
    assert not target.exists()
    assert not (tmp_path / "report").exists()
    assert not (tmp_path / "out.jsonl").exists()


def test_cached_measurements(cases: dict[str, Any], tmp_path: Path, target: Path) -> None:
    """What a stranger left in OUTPUT/work, and beside the report."""
    command = (
        *(robustness, "--path", cases["single"].path, "--quick", "--parts", "noise"),
        *("--examples", 4, "--output", tmp_path / "report"),
    )
    assert run_command(*command).status == 0
    report = json.loads((tmp_path / "report/report.json").read_text())
    work = list((tmp_path / "report/work").iterdir())
    for path in work:
        head = path.read_bytes().split(b"\n")[0]
        for content in (pickle.dumps(make_folder(target)), head + b"\n" + npy(make_folder(target))):
            path.write_bytes(content)
    for name in ("overview.svg", "overview.png", "report.html"):
        (tmp_path / "report" / name).write_bytes(pickle.dumps(make_folder(target)))
    fires(tmp_path / "report/overview.png", target)
    assert run_command(*command).status == 0
    assert not target.exists()
    again = json.loads((tmp_path / "report/report.json").read_text())
    assert again["measures"] == report["measures"]
    assert b"posix" not in b"".join(everything_in(tmp_path / "report").values())


# Messages


@pytest.mark.parametrize("name", ["a\nb: error: all is well", "\x1b[2J\x1b[31mred", "\u202egnp"])
def test_names_of_strangers_do_not_steer_the_terminal(
    name: str, sound: dict[str, Any], cases: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save({**sound, "model": {**sound["model"], name: torch.ones(2)}}, path)
    ended = run_command(predict, "--path", path, "--input", os.devnull)
    assert repr(name)[1:-1] in ended.error
    assert ended.error.isprintable()
