"""``fairseq-train --help`` and typos, where a criterion of ours is chosen; and those of alum-*."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fairseq import options
from support.in_process import run_command
from support.tools import run_tool

from alum_fairseq.convert.command import main as convert
from alum_fairseq.errors import did_you_mean
from alum_fairseq.predict.command import main as predict
from alum_fairseq.prepare.command import main as prepare
from alum_fairseq.robustness.command import main as robustness

OURS = ["data", "--task", "alum_sentence_prediction", "--criterion", "alum_sentence_prediction"]
NEEDED = ["--vocabulary", "x", "--output", "y"]
STOCK = ["data", "--task", "masked_lm", "--criterion", "masked_lm"]


def ended(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of fairseq-train's parser."""
    parser = options.get_training_parser()
    parser.prog = "fairseq-train"
    with pytest.raises(SystemExit) as found:
        options.parse_args_and_arch(parser, words)
    said = capsys.readouterr()
    return int(found.value.code), said.out, said.err


@pytest.mark.parametrize("arch", [[], ["--arch", "alum_roberta"]])
def test_help_shows_what_was_chosen(arch: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = ended([*OURS, *arch, "--help"], capsys)
    assert status == 0
    before, _, ours = text.partition("\noptions of alum_fairseq:\n")
    groups = before.partition("\n\n")[2]  # without the usage
    assert "--alum-" not in groups
    assert "--num-classes" in groups
    assert "--report-mcc" in groups
    shown = [line.split()[0] for line in ours.splitlines() if line.startswith("  --")]
    assert {"--alum-preset", "--alum-alpha", "--alum-validate"} <= set(shown)
    assert all(option.startswith("--alum-") for option in shown)
    assert ("--alum-layer-norm-eps" in shown) == bool(arch)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--arch", "roberta", "--alum-epsilom", "3"],
            "unrecognized arguments: --alum-epsilom 3; did you mean --alum-epsilon?",
        ),
        (
            ["--arch", "roberta", "--alum-epsilom=3"],
            "unrecognized arguments: --alum-epsilom=3; did you mean --alum-epsilon?",
        ),
        (
            ["--arch", "roberta_bas"],
            "argument --arch/-a: invalid choice: 'roberta_bas'; did you mean roberta_base?",
        ),
        (["--arch", "roberta", "--zzz"], "unrecognized arguments: --zzz"),
    ],
)
def test_a_typo_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended([*OURS, *words], capsys) == (2, "", f"fairseq-train: error: {line}\n")


def test_stock_training_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = ended([*STOCK, "--help"], capsys)
    assert (status, "--mask-prob" in text) == (0, False)
    status, _, error = ended([*STOCK, "--arch", "roberta", "--mask-prop", "1"], capsys)
    assert (status, error.startswith("usage:")) == (2, True)
    assert error.endswith("error: unrecognized arguments: --mask-prop 1\n")


def test_validating_without_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.get_validation_parser()
    with pytest.raises(SystemExit):
        options.parse_args_and_arch(parser, ["data", "--path", "x.pt"])
    assert "error: give --task and --criterion, those that" in capsys.readouterr().err
    given = ["data", "--path", "x.pt", "--task=masked_lm"]
    assert options.parse_args_and_arch(options.get_validation_parser(), given).path == "x.pt"


def test_by_the_command() -> None:
    done = run_tool("fairseq-train", *OURS, "--user-dir", "alum_fairseq", "--help")
    assert "\noptions of alum_fairseq:\n  --alum-preset" in done.stdout


@pytest.mark.parametrize(
    ("main", "words", "line"),
    [
        (prepare, [], "{}: the following arguments are required: --vocabulary, --output"),
        (
            prepare,
            ["--colums", "a", *NEEDED],
            "{}: unrecognized arguments: --colums a; did you mean --columns?",
        ),
        (
            prepare,
            ["--workers", "two", *NEEDED],
            "{}: argument --workers: invalid int value: 'two'",
        ),
        (predict, ["--path"], "{}: argument --path: expected one argument"),
        (
            predict,
            ["--path", "x", "--output-format", "json"],
            "{}: argument --output-format: invalid choice: 'json'; did you mean jsonl?",
        ),
        (predict, ["--path", "x", "a\nb"], "{}: unrecognized arguments: a\\nb"),
        (convert, [], "{}: the following arguments are required: COMMAND"),
        (
            convert,
            ["to-hff"],
            "{}: argument COMMAND: invalid choice: 'to-hff'; did you mean to-hf?",
        ),
        (convert, ["to-hf", "a"], "{} to-hf: the following arguments are required: OUTPUT_FOLDER"),
        (
            convert,
            ["to-hf", "a", "b", "--vocab", "c"],
            "{}: unrecognized arguments: --vocab c; did you mean --vocabulary?",
        ),
        (
            robustness,
            ["--path", "x", "--part", "all"],
            "{}: unrecognized arguments: --part all; did you mean --parts?",
        ),
        (robustness, ["compare"], "{} compare: the following arguments are required: reports"),
        (
            robustness,
            ["synonyms", "a"],
            "{} synonyms: the following arguments are required: output",
        ),
    ],
)
def test_the_commands_of_this_project(
    main: Callable[[list[str]], int], words: list[str], line: str
) -> None:
    begin, colon, message = line.partition(":")
    program = begin.format(f"alum-{main.__module__.split('.')[1]}")
    ended = run_command(main, *words)
    assert ended.status == 2
    assert ended.lines == [f"{program}: error{colon}{message} (see {program} --help)"]


def test_a_known_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["--task", "sst2", "--vocabulary", "x", "--output", "y"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean SST-2?\n")


def test_did_you_mean() -> None:
    assert did_you_mean("sst2", ["STS-B", "SST-2"]) == "; did you mean SST-2?"
    assert did_you_mean("nothing", ["SST-2"]) == ""
