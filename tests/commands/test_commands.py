"""What the commands share: vocabularies, files written whole, how a command ends."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
from support.in_process import run_command
from support.tools import run_tool
from tokenizers import Tokenizer, models, pre_tokenizers

import alum_commands
from alum_fairseq import UsageError, cli
from alum_fairseq.convert.command import main as convert
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.files import existing_file, existing_folder, whole_file, whole_folder
from alum_fairseq.predict.command import main as predict
from alum_fairseq.prepare.command import main as prepare
from alum_fairseq.robustness.command import main as robustness

COMMANDS = {
    "alum-prepare": prepare,
    "alum-convert": convert,
    "alum-predict": predict,
    "alum-robustness": robustness,
}


def tokenizer_of(model: models.Model, words: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = words
    return tokenizer


WORDPIECE = tokenizer_of(
    models.WordPiece({"[UNK]": 0, "un": 1, "##friend": 2, "##ly": 3, "cat": 4}, unk_token="[UNK]"),
    pre_tokenizers.Whitespace(),
)
BYTE_LEVEL = tokenizer_of(
    models.BPE({"Ġ": 0, "a": 1, "b": 2, "Ġa": 3}, [("Ġ", "a")]),
    pre_tokenizers.ByteLevel(add_prefix_space=True),
)
METASPACE = tokenizer_of(
    models.Unigram([("▁a", -1.0), ("b", -2.0), ("▁", -3.0)], unk_id=2), pre_tokenizers.Metaspace()
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dict.txt").write_text("a 3\nb 1\n")
    return tmp_path


def write_sentencepiece(folder: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a bad cab", "a cab", "bad"] * 20),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=12,
        hard_vocab_limit=False,
        minloglevel=2,
    )


# Vocabularies


def test_a_dictionary_alone_is_of_words(folder: Path) -> None:
    vocabulary = Vocabulary.load(folder)
    assert (vocabulary.bpe, vocabulary.options) == ("none", {})
    assert vocabulary.encoder().encode("  a\tb \n") == "a b"
    assert len(vocabulary.dictionary) == 6


def test_sentencepiece_is_known_by_its_file(folder: Path, tmp_path: Path) -> None:
    write_sentencepiece(folder)
    vocabulary = Vocabulary.load(folder)
    path = str(folder / "sentencepiece.bpe.model")
    assert vocabulary.options == {"bpe": "sentencepiece", "sentencepiece_model": path}
    expected = sentencepiece.SentencePieceProcessor(model_file=path).encode("a cab", out_type=str)
    assert vocabulary.encoder().encode("a cab").split() == expected
    copy = vocabulary.copy_to(tmp_path / "deep/copy")
    assert sorted(p.name for p in copy.folder.iterdir()) == ["dict.txt", "sentencepiece.bpe.model"]
    assert Vocabulary.load(copy.folder).encoder().encode("a cab").split() == expected


@pytest.mark.parametrize(
    ("tokenizer", "text", "symbols", "beginnings"),
    [
        (
            WORDPIECE,
            "unfriendly cat",
            ["un", "##friend", "##ly", "cat"],
            [True, False, False, True],
        ),
        (BYTE_LEVEL, "ab a", ["Ġa", "b", "Ġa"], [True, False, True]),
        (METASPACE, "ab a", ["▁a", "b", "▁a"], [True, False, True]),
    ],
    ids=["wordpiece", "byte-level", "metaspace"],
)
def test_a_tokenizer_json(
    tokenizer: Tokenizer, text: str, symbols: list[str], beginnings: list[bool], folder: Path
) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = Vocabulary.load(folder)
    assert vocabulary.bpe == "alum_tokenizers"
    encoder = vocabulary.encoder()
    assert encoder.encode(text).split() == symbols
    assert [encoder.is_beginning_of_word(symbol) for symbol in symbols] == beginnings
    assert encoder.is_beginning_of_word("<unk>")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "dict.txt").unlink(), "has no dict.txt$"),
        (
            lambda f: (f / "dict.txt").rename(f / "config.json"),
            "has no dict.txt; for a Hugging Face folder, run alum-convert from-hf .* base first",
        ),
        (lambda f: (f / "dict.txt").write_text("a\n"), "dict.txt is not a dictionary of fairseq"),
        (lambda f: (f / "dict.txt").write_text("a 1\na 1\n"), "Duplicate word"),
        (lambda f: (f / "dict.txt").write_bytes(b"\xff 1\n"), "dict.txt is not a dictionary"),
        (lambda f: (f / "encoder.json").write_text("{}"), "holds encoder.json but no vocab.bpe"),
        (lambda f: (f / "vocab.bpe").write_text(""), "holds vocab.bpe but no encoder.json"),
        (
            lambda f: [(f / n).touch() for n in ("tokenizer.json", "sentencepiece.bpe.model")],
            "holds sentencepiece.bpe.model and tokenizer.json: keep those that dict.txt belongs to",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizer"),
        (lambda f: (f / "sentencepiece.bpe.model").write_text("x"), "model cannot be read"),
        (
            lambda f: [(f / n).write_text("x") for n in ("encoder.json", "vocab.bpe")],
            "encoder.json, .*vocab.bpe cannot be read",
        ),
    ],
)
def test_broken_vocabularies(spoil: Callable[[Path], object], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(UsageError, match=message) as found:
        Vocabulary.load(folder).encoder()
    assert "\n" not in str(found.value)


# Files


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new/target"
    with whole_file(target) as aside:
        aside.write_text("all of it")
        assert not target.exists()
    assert target.read_text() == "all of it"
    with pytest.raises(ZeroDivisionError), whole_file(target) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "all of it"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(ZeroDivisionError), whole_folder(target) as aside:
        (aside / "half").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target) as aside:
        (aside / "file").touch()
    assert [path.name for path in target.iterdir()] == ["file"]
    with pytest.raises(UsageError, match="target exists: remove it, or name another folder"):
        whole_folder(target).__enter__()
    with pytest.raises(UsageError, match="file/in cannot be written"):
        whole_folder(target / "file/in").__enter__()


@pytest.mark.parametrize("name", [".", "../empty", "../link", "../dangling"])
def test_an_empty_folder_is_filled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not replaced: it may be a mount point, or the current folder."""
    target = tmp_path / "empty"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to("new")
    monkeypatch.chdir(target)
    with pytest.raises(ZeroDivisionError), whole_folder(Path(name)) as aside:
        (aside / "half").touch()
        raise ZeroDivisionError
    assert list(target.iterdir()) == []
    number = target.stat().st_ino
    with whole_folder(Path(name)) as aside:
        (aside / "folder").mkdir()
        (aside / "folder/file").touch()
    assert [str(path) for path in Path(name).rglob("*")] == [
        str(Path(name, "folder")),
        str(Path(name, "folder/file")),
    ]
    assert target.stat().st_ino == number
    assert (tmp_path / "dangling").is_symlink()


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder, not a file"):
        whole_file(tmp_path).__enter__()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with whole_file(pipe) as aside:
        assert aside == pipe
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "link").symlink_to("target")
    with whole_file(tmp_path / "link") as aside:
        aside.write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with whole_file(tmp_path / "file"), whole_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder")]
    assert modes == [0o644, 0o755]


def test_what_must_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert existing_file(tmp_path / "file") == tmp_path / "file"
    assert existing_folder(tmp_path) == tmp_path
    for check, path, message in (
        (existing_file, tmp_path, "is a folder, not a file"),
        (existing_file, tmp_path / "no", "no does not exist"),
        (existing_folder, tmp_path / "file", "is a file, not a folder"),
        (existing_folder, tmp_path / "no", "no does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            check(path)


# How a command ends


def raising(error: BaseException) -> Callable[[list[str]], None]:
    def main(argv: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("--this is 3: it must be 4"), 2, "error: --this is 3: it must be 4\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(raising(error), []) == code
    assert capsys.readouterr().err.endswith(f": {said}")


def test_an_unexpected_error_is_shown_whole() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()), [])


def test_success_and_a_reader_that_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.run(lambda argv: None, []) == 0
    read, write = os.pipe()
    spare = SimpleNamespace(flush=lambda: None, fileno=lambda: write)
    monkeypatch.setattr("sys.stdout", spare)
    assert cli.run(raising(BrokenPipeError()), []) == 0
    os.close(read)
    os.write(write, b"goes nowhere")  # and does not fail
    os.close(write)


HELP = json.loads(Path(alum_commands.__file__).with_name("help.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", HELP)
def test_help_imports_neither_torch_nor_fairseq(name: str) -> None:
    program, *words = name.split()
    path = Path(sys.executable).with_name(program)
    for option in ("-h", "--help"):
        command = [sys.executable, "-X", "importtime", path, *words, option]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == HELP[name]
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "alum_commands" in imported
        assert not imported & {"alum_fairseq", "torch", "fairseq", "numpy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_all_but_help_is_the_commands_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name in HELP
    main, begun = COMMANDS[name], []
    monkeypatch.setattr(sys.modules[main.__module__], "main", lambda: begun.append(sys.argv) or 7)
    start = getattr(alum_commands, name.removeprefix("alum-"))
    for words in ([], ["-h", "x"], ["--helpx"], ["no", "--help"], ["--path", "--help"]):
        monkeypatch.setattr(sys, "argv", [name, *words])
        assert start() == 7
        assert begun.pop() == [name, *words]


def test_help_to_a_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import alum_commands; alum_commands.predict()", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str) -> None:
    text = run_tool(name, "--help").stdout
    assert text.startswith(f"usage: {name}")
    assert max(map(len, text.splitlines())) <= 100
    assert "INFO" not in text
    ended = run_command(COMMANDS[name], "--no-such-option")
    assert (ended.status, ended.lines[0].split(":")[0]) == (2, name)
