"""Let every reader of files read mutants, in a process of its own that may be killed.

    python tests/support/fuzzing.py BASE COUNT TARGET... [--seed N] [--first N]

BASE holds good files, as tests/commands/test_broken_files.py makes them. Each mutant must give a
result or one line. Of those that do not, the first of each kind is left in BASE/failed_N, and the
exit status is 1. What gave a new line is mutated further.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import logging
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from alum_fairseq import cli
from alum_fairseq.convert.command import main as convert
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.command import main as predict
from alum_fairseq.prepare.command import main as prepare
from alum_fairseq.robustness.examples import from_binarized
from support.in_process import Ended, everything_in, run_command
from support.mutation import mutate_bytes, mutate_checkpoint, mutate_json, mutate_lines
from support.options import command_line
from support.places import PLUGIN

SECONDS = 60  # that a reader may take; most take a tenth of one
MEMORY_GONE = "(?i)(not enough|out of|allocate) memory|memory (alloc|error)|bad_alloc|MemoryError"
MEMORY = 6 << 30  # bytes beyond those that the process has before

Mutate = Callable[[bytes, Random], bytes]
BY_BYTES: tuple[Mutate, ...] = (mutate_bytes,)
JSON: tuple[Mutate, ...] = (mutate_bytes, mutate_json)
LINES: tuple[Mutate, ...] = (mutate_bytes, mutate_lines)
CHECKPOINT: tuple[Mutate, ...] = (mutate_bytes, mutate_checkpoint)


@dataclass(frozen=True)
class Target:
    """What is mutated, and what reads it.

    Attributes:
        folder: of the base that is copied.
        files: in it, that are mutated one at a time, each with the ways to do so.
        read: reads the copy, each reader in turn; the second path is where to write.
    """

    folder: str
    files: dict[str, tuple[Mutate, ...]]
    read: Sequence[Callable[[Path, Path], Ended]]


def _predict(folder: Path, output: Path) -> Ended:
    table = ("--input", folder.parent.parent / "base/table.tsv", "--columns", "text")
    return run_command(
        *(predict, "--path", folder / "model.pt", "--data", folder.parent.parent / "base/single"),
        *(*table, "--output", output / "out.tsv"),
    )


def _to_hf(folder: Path, output: Path) -> Ended:
    """To Hugging Face's form; what is made must be what transformers can load."""
    data = folder.parent.parent / "base/single"
    ended = run_command(convert, "to-hf", folder / "model.pt", output / "hf", "--data", data)
    if ended.status == 0:
        kind = json.loads((output / "hf/config.json").read_text())["architectures"][0]
        _, seen = getattr(transformers, kind).from_pretrained(
            output / "hf", output_loading_info=True
        )
        assert not seen["missing_keys"] | seen["mismatched_keys"], seen
        transformers.AutoTokenizer.from_pretrained(output / "hf")
    return ended


def _start(folder: Path, output: Path) -> Ended:
    """What fairseq-train does with a checkpoint before it trains."""

    def main(words: list[str]) -> None:
        task, cfg = _task(str(folder.parent.parent / "base/single"))
        task.cfg.alum_restore_file = str(folder / "model.pt")
        task.build_model(cfg.model)
        task.build_criterion(cfg.criterion)

    return run_command(lambda words: cli.run(main, words))


_made: dict[str, Any] = {}


def _task(data: str) -> Any:
    if data not in _made:
        command = {
            **{"task": "alum_sentence_prediction", "criterion": "alum_sentence_prediction"},
            **{"arch": "roberta", "encoder-layers": 2, "encoder-embed-dim": 32, "num-classes": 3},
            **{"encoder-ffn-embed-dim": 64, "encoder-attention-heads": 4, "max-positions": 40},
            **{"user-dir": PLUGIN, "optimizer": "adam", "init-token": 0},
        }
        args = options.parse_args_and_arch(
            options.get_training_parser(), [data, *command_line(command)]
        )
        cfg = convert_namespace_to_omegaconf(args)
        _made[data] = tasks.setup_task(cfg.task), cfg
    return _made[data]


def _from_hf(folder: Path, output: Path) -> Ended:
    return run_command(convert, "from-hf", folder, output / "model")


def _prepare(kind: str) -> Callable[[Path, Path], Ended]:
    def read(folder: Path, output: Path) -> Ended:
        return run_command(
            *(
                prepare,
                "--train",
                folder / f"table.{kind}",
                "--columns",
                "text",
                "--label",
                "label",
            ),
            *("--vocabulary", folder, "--output", output / "data", "--workers", 1),
        )

    return read


def _vocabulary_to_hf(folder: Path, output: Path) -> Ended:
    """The tokenizer.json that is made of a vocabulary."""
    from alum_fairseq.convert.write_tokenizer import make_tokenizer, write_tokenizer
    from alum_fairseq.files import whole_folder

    def main(words: list[str]) -> None:
        vocabulary = Vocabulary.load(folder)
        tokenizer, _ = make_tokenizer(vocabulary, 0, 2)
        with whole_folder(output / "hf") as made:
            write_tokenizer(tokenizer, vocabulary, 40, made)
        tokenizer.encode("some of the words")

    return run_command(lambda words: cli.run(main, words))


def _binarized(kind: str) -> Callable[[Path, Path], Ended]:
    """What alum-robustness makes of data, before it measures."""

    def main(words: list[str]) -> None:
        folder = Path(words[0])
        predictor = Predictor.load(folder.parent.parent / f"base/{kind}.pt", folder)
        examples = from_binarized(folder, "valid", predictor)
        predictor.logits([example.texts for example in examples[:3]])

    return lambda folder, output: run_command(lambda words: cli.run(main, words), folder)


def _dataset(kind: str) -> Callable[[Path, Path], Ended]:
    """What fairseq-train makes of data, up to the batches."""

    def main(words: list[str]) -> None:
        folder = Path(words[0])
        options_of = copy.deepcopy(_task(str(folder.parent.parent / "base/single"))[1].task)
        options_of.data = str(folder)
        if kind == "regression":
            options_of.regression_target, options_of.num_classes = True, 1
        task = tasks.setup_task(options_of)
        task._built_model = SimpleNamespace(max_positions=lambda: 40)
        task.load_dataset("valid")
        dataset = task.dataset("valid")
        dataset.collater([dataset[i] for i in range(len(dataset))])

    return lambda folder, output: run_command(lambda words: cli.run(main, words), folder)


INPUTS = dict.fromkeys(("input0/valid.idx", "input0/valid.bin"), BY_BYTES)
LABELS = dict.fromkeys(("label/valid.idx", "label/valid.bin"), BY_BYTES)
DICTIONARIES = dict.fromkeys(("input0/dict.txt", "label/dict.txt", "vocabulary/dict.txt"), LINES)
RECORD = {"alum-prepare.json": JSON}
READ_TABLE = {kind: (_prepare(kind),) for kind in ("tsv", "csv", "jsonl")}
READ_VOCABULARY = (_prepare("tsv"), _vocabulary_to_hf)

TARGETS: dict[str, Target] = {
    "checkpoint": Target("new", {"model.pt": CHECKPOINT}, (_predict, _to_hf, _start)),
    "old checkpoint": Target("old", {"model.pt": CHECKPOINT}, (_predict, _to_hf, _start)),
    "tsv": Target("words", {"table.tsv": LINES}, READ_TABLE["tsv"]),
    "csv": Target("words", {"table.csv": LINES}, READ_TABLE["csv"]),
    "jsonl": Target("words", {"table.jsonl": JSON}, READ_TABLE["jsonl"]),
    "dictionary": Target("words", {"dict.txt": LINES}, READ_VOCABULARY),
    "byte-level": Target(
        "gpt2",
        {"encoder.json": JSON, "vocab.bpe": LINES, "dict.txt": LINES},
        READ_VOCABULARY,
    ),
    "sentencepiece": Target(
        "pieces", {"sentencepiece.bpe.model": BY_BYTES, "dict.txt": LINES}, READ_VOCABULARY
    ),
    "tokenizer": Target("tokenizer", {"tokenizer.json": JSON}, READ_VOCABULARY),
    "hugging face": Target(
        "hf",
        {
            "config.json": JSON,
            "tokenizer.json": JSON,
            "tokenizer_config.json": JSON,
            "special_tokens_map.json": JSON,
            "model.safetensors": BY_BYTES,
        },
        (_from_hf,),
    ),
    "pickled hugging face": Target("hf_bin", {"pytorch_model.bin": CHECKPOINT}, (_from_hf,)),
    "byte-level hugging face": Target(
        "hf_gpt2", {"tokenizer.json": JSON, "vocab.json": JSON, "merges.txt": LINES}, (_from_hf,)
    ),
    "xlm-r": Target("hf_pieces", {"sentencepiece.bpe.model": BY_BYTES}, (_from_hf,)),
    "classes": Target(
        "single",
        INPUTS | LABELS | DICTIONARIES | RECORD,
        (_binarized("single"), _dataset("single")),
    ),
    "numbers": Target(
        "regression",
        INPUTS | RECORD | {"label/valid.label": LINES},
        (_binarized("regression"), _dataset("regression")),
    ),
    "choices": Target(
        "choices",
        {"input2/valid.idx": BY_BYTES, "label/valid.label": LINES, **RECORD},
        (_binarized("choices"),),
    ),
}
CHECKPOINTS = ("checkpoint", "old checkpoint")
DATA = tuple(name for name in TARGETS if name not in CHECKPOINTS)


class Hang(BaseException):
    """A reader took too long. No Exception, which readers may catch."""


def _alarm(*_: Any) -> None:
    raise Hang


def judge(ended: Ended, output: Path) -> str | None:
    """What is wrong with how a reader ended; None: nothing."""
    if ended.status == 2:
        if everything_in(output) or any(output.iterdir()):
            return "something was written all the same"
        try:
            message = ended.error
        except AssertionError as error:
            return f"not one line: {error}"
        if not message.isprintable():
            return f"it steers the terminal: {message!r}"
        if len(message) > 1500:
            return f"it is no line that anyone reads: {message}"
        return "it took all memory" if re.search(MEMORY_GONE, message) else None
    return None if ended.status == 0 else f"exit status {ended.status}"


def template(ended: Ended) -> str:
    """The message without names and numbers: whether something new was reached."""
    return f"{ended.status} " + re.sub(r"[^\s:,]*[/\d'][^\s:,]*", "*", " ".join(ended.lines))[:120]


def campaign(base: Path, name: str, count: int, seed: int, first: int) -> dict[str, int]:
    """Read so many mutants; returns how often which line came, failures after an exclamation."""
    target = TARGETS[name]
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=base.parent) as scratch:
        folder, output = Path(scratch) / "mutant", Path(scratch) / "output"
        shutil.copytree(base / target.folder, folder)
        corpora = {file: [(folder / file).read_bytes()] for file in target.files}
        for number in range(first, first + count):
            random = Random(f"{name} {seed} {number}")
            file = random.choice(list(target.files))
            mutant = bred(corpora[file], target.files[file], random)
            (folder / file).write_bytes(mutant)
            (base / "mutant").write_bytes(mutant)  # there, should the process be killed
            for read in target.read:
                output.mkdir()
                line = watched(read, folder, output)
                if line not in found:
                    if line.startswith("!"):
                        kept = base / f"failed_{len(found)}"
                        shutil.copyfile(base / "mutant", kept)
                        print(f"{name} {file}, {number} of seed {seed}, {kept}: {line}", flush=True)
                    elif len(mutant) < 1 << 20:
                        corpora[file].append(mutant)
                found[line] = found.get(line, 0) + 1
                shutil.rmtree(output)
            (folder / file).write_bytes(corpora[file][0])
            if sys.stderr.isatty() and number % 50 == 0:
                print(f"{name}: {number}", file=sys.stderr)
    return found


def bred(corpus: list[bytes], rules: Sequence[Mutate], random: Random) -> bytes:
    """A mutant of the good file, or of a mutant."""
    parent = random.choice((corpus[0], random.choice(corpus)))
    try:
        return random.choice(rules)(parent, random)
    except Exception:  # a mutant of a mutant may no longer be JSON
        return mutate_bytes(parent, random)


def watched(read: Callable[[Path, Path], Ended], folder: Path, output: Path) -> str:
    """Read, but not for ever; the line that it gave, or an exclamation and what is wrong."""
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # in C, where no signal is heard
    signal.alarm(SECONDS)
    try:
        ended = read(folder, output)
        wrong = judge(ended, output)
        return f"! {wrong:.500}" if wrong else template(ended)
    except BaseException as error:
        signal.alarm(0)
        places = traceback.extract_tb(error.__traceback__)
        own = [place for place in places if "/alum_fairseq/" in place.filename] or places
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno} ... {places[-1].filename}:"
        return f"! {type(error).__name__} {where}{places[-1].lineno} {error!s:.200}"
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("count", type=int, help="mutants of each target")
    parser.add_argument("targets", nargs="+", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger().handlers = [logging.NullHandler()]  # what is logged is in what is judged
    transformers.utils.logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, _alarm)
    torch.set_num_threads(1)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    failed = False
    for target in given.targets:
        print(f"{target}:")
        found = campaign(given.base.absolute(), target, given.count, given.seed, given.first)
        for line, times in sorted(found.items(), key=lambda item: -item[1]):
            print(f"{times:6} {line}", flush=True)
        failed |= any(line.startswith("!") for line in found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
