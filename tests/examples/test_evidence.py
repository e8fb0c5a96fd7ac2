"""The evidence: its studies, the grid that runs them, its file of results, what is made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sys
import time
import zlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fairseq import options
from fairseq.dataclass.utils import gen_parser_from_dataclass
from matplotlib.figure import Figure
from support.converted import save_model
from support.in_process import Ended, run_command
from support.places import PLUGIN, ROOT
from support.tools import Train

from alum_fairseq.adversarial import presets
from alum_fairseq.adversarial.precision import NOISE_STD
from alum_fairseq.checkpoints.reading import load_state
from alum_fairseq.criterions.options import AlumConfig, resolve
from alum_fairseq.data.record import DataRecord, SplitRecord
from alum_fairseq.data.texts import read_texts
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import (
    Classification,
    Regression,
    SequenceTagging,
    SpanPrediction,
)

sys.path.append(str(ROOT / "examples" / "evidence"))

import analyse
import cells
import grid
import ledger
import pictures
import sources
import summary
import tool
import worker
from cells import CALIBRATED, PLAIN, Cell, Effort, Recipe
from console import Screen
from support.passes import PASSES

ALL = [cell for study in cells.STUDIES.values() for cell in study()]
DIGESTS = {
    name: name
    for name in (
        "sst2", "sick", "cola", "ag_news", "wikitext2", "policyqa", "wnut17", "python", "encoder",
    )
}  # fmt: skip
RECIPE = Recipe(rate=1e-3, epochs=2, updates=8, batch=8, tokens=16, layers=1, width=32)
LITTLE = Effort(
    noise=6, greedy=3, queries=5, embeddings=4, steps=2, smoothness=4, noise_rates=(0.2, 0.4)
)
# By kind and options, one of the cells that have these.
DIFFERENT_OPTIONS = {
    " ".join(
        ["pre-training" if cell.pretrains else "fine-tuning", *worker.alum_options(cell)]
    ): cell
    for cell in ALL
}
CELL = Cell("finetuning", "sst2", "calibrated", 1, CALIBRATED, RECIPE, 64, effort=LITTLE)


ROWS = 1000


def record_of(task: str) -> DataRecord:
    """What is known of the data set of a task, with a thousand examples to train on."""
    problem = {
        "sick-r": Regression(),
        "policyqa": SpanPrediction(),
        "wnut17": SequenceTagging(("O", "B-x", "I-x")),
    }.get(task, Classification(("a", "b")))
    columns = [f"text{number}" for number in range(len(cells.TASKS[task].columns))]
    train = SplitRecord([], ROWS, 0, 0, 0, True)
    return DataRecord(
        problem, len(columns), columns, "label", "jsonl", True, 40, "characters",
        splits={"train": train},
    )  # fmt: skip


def fairseq_parses(command: list[str]) -> Namespace:
    """What fairseq-train makes of a command line; it ends the process if it does not take it."""
    words = [str(PLUGIN) if word == "alum_fairseq" else word for word in command[1:]]
    return options.parse_args_and_arch(options.get_training_parser(), words)


def settings_of(cfg: Namespace, pretraining: bool) -> dict[str, Any]:
    """What the criterion trains with, by field; steps and site as the first results have them."""
    stage = "pretraining" if pretraining else "finetuning"
    preset = resolve(cfg, stage, divergence="kl", categorical=True)
    found = {**vars(cfg), **vars(preset), **vars(preset.adversary)}
    found = {name.removeprefix("alum_"): value for name, value in found.items()}
    found |= {"alpha": found[f"{stage}_alpha"], "noise_std": found["noise_std"] or NOISE_STD}
    found["ascent"] = "power"
    found["layer"] = 0
    if found["site"] != "words":
        found["layer"] = int(found.pop("site").replace("embeddings", "0"))
    if found["steps"] == 0:
        found |= {"ascent": "random", "steps": 1}
    left_out = ("preset", "adversary", "pretraining_alpha", "finetuning_alpha")
    return {name: value for name, value in found.items() if name not in left_out}


def in_order(study: str) -> list[Cell]:
    return sorted(cells.STUDIES[study](), key=lambda cell: cell.study_order)


# -------------------------------------------------------------------------------------- the studies


class TestStudies:
    def test_no_two_cells_have_one_name(self) -> None:
        assert len({cell.name for cell in ALL}) == len(ALL)

    @pytest.mark.parametrize("study", cells.STUDIES)
    def test_all_of_a_seed_come_before_the_next_seed(self, study: str) -> None:
        # Of pre-training with other seeds only the fine-tuning has any.
        seeds = [cell.seed for cell in in_order(study)]
        assert seeds == sorted(seeds)
        assert len(set(seeds)) >= 2

    def test_the_first_cells_are_those_that_the_claim_rests_on(self) -> None:
        first = in_order("finetuning")[:8]
        assert {(cell.method, cell.task) for cell in first} == {
            (method, task) for method in ("calibrated", "plain") for task in cells.CLASSIC
        }

    def test_five_seeds_of_every_method_on_every_task(self) -> None:
        found = {(cell.task, cell.method, cell.seed) for cell in in_order("finetuning")}
        methods = {*cells.FINETUNING, cells.PLAIN_LONGER}
        assert found == {(t, m, s) for t in cells.CLASSIC for m in methods for s in range(1, 6)}

    def test_what_a_cell_starts_from_is_pre_training(self) -> None:
        starts = [cell.start for cell in ALL if cell.start]
        assert starts
        assert all(start.pretrains for start in starts)
        assert all(cell.start for cell in ALL if cell.study == "pretraining" and not cell.pretrains)

    def test_models_from_scratch_are_told_from_the_real_encoder(self) -> None:
        real = {cell.study for cell in ALL if not cell.from_scratch}
        scratch = {cell.study for cell in ALL if cell.from_scratch}
        assert real & scratch == {"calibrate"}
        assert {"pretraining"} <= scratch
        assert {"encoder"} <= real

    @pytest.mark.parametrize("cell", DIFFERENT_OPTIONS.values(), ids=DIFFERENT_OPTIONS)
    def test_the_criterion_takes_the_options_and_resolves_them_alike(self, cell: Cell) -> None:
        """Hence two cells with the same identity train the same."""
        parser = ArgumentParser(allow_abbrev=False)
        gen_parser_from_dataclass(parser, AlumConfig())
        built, silent = (
            settings_of(parser.parse_args(words), cell.pretrains)
            for words in (
                [word for word in worker.alum_options(cell) if word != "--store-ema"],
                [],
            )
        )
        if built["alpha"] == 0:
            assert cell.resolved == {"alum-alpha": 0}
            return
        resolved = json.loads(json.dumps(cell.resolved, allow_nan=False))
        named = {
            name.removeprefix("alum-").replace("-", "_"): math.inf if value == "inf" else value
            for name, value in resolved.items()
        }
        assert {name: built[name] for name in named} == named
        # What resolved does not name is as where nothing is given.
        for name in built.keys() - named.keys():
            assert built[name] == silent[name], name

    @pytest.mark.parametrize("study", cells.STUDIES)
    def test_fairseq_takes_every_command(self, study: str, tmp_path: Path) -> None:
        architecture = worker.scratch_architecture(RECIPE)
        different = {
            json.dumps(asdict(replace(cell, method="", seed=1, study_order=()))): cell
            for cell in in_order(study)
        }
        for cell in different.values():
            if cell.pretrains:
                start = tmp_path if cell.start or cell.head_only else None
                command = worker.pretraining_command(
                    cell, tmp_path, start, architecture, 77, tmp_path
                )
            else:
                record_of(cell.task).save(tmp_path)
                command = worker.finetuning_command(
                    cell, tmp_path, tmp_path, architecture, tmp_path
                )
            given = fairseq_parses(command)
            batches = math.ceil(ROWS / cell.recipe.batch)
            updates = cell.recipe.updates or batches * cell.recipe.epochs
            assert given.max_update == int(given.total_num_update) == round(updates * cell.factor)
            assert (given.lr, given.seed) == ([cell.recipe.rate], cell.seed)
            assert given.dropout == cell.recipe.dropout
            assert given.encoder_embed_dim == RECIPE.width
            random = cell.pretrains and not cell.start and not cell.head_only
            assert (given.finetune_from_model is None) == random
            assert given.max_positions == (77 if cell.pretrains else 40)
            assert given.store_ema == (cell.options.get("alum-preset") == "smart")
            for name, value in cell.options.items():
                assert getattr(given, name.replace("-", "_")) == value
            if not cell.pretrains:
                task = cells.TASKS[cell.task]
                assert given.best_checkpoint_metric == task.metric
                assert given.maximize_best_checkpoint_metric
                assert given.task == given.criterion == f"alum_{task.problem}"
                if task.problem == "sentence_prediction":
                    assert given.regression_target == (task.scale is not None)
                    assert given.report_mcc == (task.metric == "mcc")
                    assert given.report_pearson_and_spearman == (task.metric == "pearson")

    # The benchmark counts floating-point operations of the same modes.
    MODES: ClassVar[dict[str, dict[str, Any]]] = {
        "stock": {"alum-alpha": 0},
        "exact": {},
        "random": {"alum-steps": 0},
        "a quarter of the batch": {"alum-fraction": 0.25},
        "K=2": {"alum-steps": 2},
        "K=3": {"alum-steps": 3},
        **{name: options for name, options in cells.METHODS.items() if name in PASSES},
    }

    @pytest.mark.parametrize("mode", MODES)
    def test_cost_is_that_of_the_benchmark(self, mode: str) -> None:
        cell = replace(CELL, options=self.MODES[mode])
        assert cell.flops_factor == pytest.approx(sum(PASSES[mode]) / sum(PASSES["stock"]))

    def test_plain_longer_costs_as_much_as_the_preset(self) -> None:
        [longer] = cells.choose(ALL, [f"finetuning/sst2/{cells.PLAIN_LONGER}/1"])
        [ours] = cells.choose(ALL, ["finetuning/sst2/calibrated/1"])
        assert longer.flops_factor * longer.factor == pytest.approx(ours.flops_factor)
        assert longer.options == PLAIN


class TestChoosing:
    def test_patterns_in_their_order_and_each_cell_once(self) -> None:
        found = cells.choose(ALL, ["tune/sst2", "finetuning/*/plain/2", "tune"])
        names = [cell.name for cell in found]
        first = [cell.name for cell in in_order("tune") if cell.task == "sst2"]
        rest = [cell.name for cell in in_order("tune") if cell.task != "sst2"]
        plain = [f"finetuning/{task}/plain/2" for task in cells.CLASSIC]
        assert names == first + plain + rest

    @pytest.mark.parametrize("pattern", ["tuning", "tune/mnli", "full/sst2/plain/9", "a/b/c/d/e"])
    def test_a_pattern_without_a_cell(self, pattern: str) -> None:
        with pytest.raises(UsageError, match=re.escape(f"--cells {pattern}: there is no such")):
            cells.choose(ALL, ["tune", pattern])

    @pytest.mark.parametrize("pattern", [f"*/*/{method}" for method in cells.GONE])
    def test_a_method_that_is_gone_names_its_successor(self, pattern: str) -> None:
        method = pattern.rpartition("/")[2]
        successor = cells.GONE[method]
        said = f"{method} was run at 97b99b5, and its options are gone: take {successor}"
        with pytest.raises(UsageError, match=re.escape(f"--cells {pattern}: {said}")):
            cells.choose(ALL, [pattern])
        assert cells.choose(ALL, [f"*/*/{successor}"])


def fields_changed(what: Any) -> Iterator[Any]:
    """The same with each field changed in turn."""
    for field in dataclasses.fields(what):
        value = getattr(what, field.name)
        changed = {str: "high", tuple: (0.5,)}.get(type(value)) or value + 1
        yield pytest.param(replace(what, **{field.name: changed}), id=field.name)


PRESET = cells.resolved(CALIBRATED, pretraining=False)


class TestIdentity:
    START = replace(CELL, task=cells.TEXT)

    @pytest.mark.parametrize(
        "changed",
        [
            *({"recipe": one.values[0]} for one in fields_changed(RECIPE)),
            *({"effort": one.values[0]} for one in fields_changed(LITTLE)),
            {"task": "sick-e"}, {"seed": 2}, {"size": 65}, {"size": None}, {"factor": 2.0},
            {"options": PLAIN}, {"options": {"alum-epsilon": 7.0}}, {"options": {"alum-steps": 9}},
            {"options": {"alum-preset": "paper"}}, {"options": {"alum-fraction": 0.5}},
            {"options": {"alum-steps": 0}}, {"options": {"alum-objective": "task-loss"}},
            {"options": {"alum-site": "words"}}, {"options": {"alum-site": "1"}},
            {"options": {"alum-preset": "vat"}}, {"options": {"alum-preset": "fgm"}},
            {"start": START}, {"head_only": True},
        ],
        ids=str,
    )  # fmt: skip
    def test_what_changes_results_changes_it(self, changed: dict[str, Any]) -> None:
        assert replace(CELL, **changed).key(DIGESTS) != CELL.key(DIGESTS)

    def test_what_it_starts_from_counts(self) -> None:
        start = replace(CELL, start=self.START)
        other = replace(CELL, start=replace(self.START, seed=2))
        assert start.key(DIGESTS) != other.key(DIGESTS)

    @pytest.mark.parametrize("source", ["sst2", "encoder"])
    def test_data_and_encoder_count(self, source: str) -> None:
        assert CELL.key({**DIGESTS, source: "new"}) != CELL.key(DIGESTS)

    @pytest.mark.parametrize("source", ["sick", "wikitext2", "python"])
    def test_other_data_do_not(self, source: str) -> None:
        assert CELL.key({**DIGESTS, source: "new"}) == CELL.key(DIGESTS)

    def test_text_counts_in_pre_training(self) -> None:
        for source in ("wikitext2", "python"):
            assert self.START.key({**DIGESTS, source: "new"}) != self.START.key(DIGESTS)

    def test_the_presets_numbers_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = CELL.key(DIGESTS)
        changed = replace(presets.PRESETS["calibrated"], finetuning_alpha=2.0)
        monkeypatch.setitem(presets.PRESETS, "calibrated", changed)
        assert replace(CELL).key(DIGESTS) != before

    def test_the_revision_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = CELL.key(DIGESTS)
        monkeypatch.setattr(cells, "REVISION", cells.REVISION + 1)
        assert CELL.key(DIGESTS) != before

    @pytest.mark.parametrize(
        "changed",
        [
            {"study": "full"}, {"method": "other"}, {"study_order": (7,)},
            {"options": {}},
            {"options": {**CALIBRATED, "alum-steps": int(PRESET["alum-steps"])}},
            {"options": {name: PRESET[name] for name in ("alum-alpha", "alum-dropout")}},
            {"options": {"alum-site": "embeddings", "alum-warmup-updates": 0}},
            {"options": {"alum-site": "0", "alum-start": "normal", "alum-sides": "both"}},
        ],
        ids=str,
    )  # fmt: skip
    def test_names_and_ways_to_say_the_same_do_not(self, changed: dict[str, Any]) -> None:
        assert replace(CELL, **changed).key(DIGESTS) == CELL.key(DIGESTS)

    def test_the_results_in_the_repository_are_those_of_todays_cells(self) -> None:
        """But for methods that are gone; hence the grid does not run them again."""
        todays = {cell.name: cell for one in ALL for cell in (one, one.start) if cell}
        names = ("revision", "task", "seed", "alum", "recipe", "size", "factor", "effort")
        for line in ledger.read(ROOT / "docs" / "evidence" / "results.jsonl"):
            if line["method"] not in cells.GONE:
                identity = json.loads(json.dumps(todays[ledger.name(line)].identity(DIGESTS)))
                found = {**line, "alum": line["resolved"]}
                assert {n: found[n] for n in names} == {n: identity[n] for n in names}

    @pytest.mark.parametrize(
        "cell", [CELL, START, replace(CELL, start=START), ALL[0], ALL[-1]], ids=range(5)
    )
    def test_the_worker_is_told_all_of_it(self, cell: Cell, tmp_path: Path) -> None:
        paths = worker.Paths(tmp_path, Path("d"), None, "key", None)
        worker.write_spec(cell, paths)
        found, found_paths = worker.read_spec(paths.spec)
        assert found == cell
        assert found_paths == paths
        assert found.key(DIGESTS) == cell.key(DIGESTS)


# ------------------------------------------------------------------------------ the file of results


class TestLedger:
    def test_lines_in_their_order(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "results.jsonl"
        assert ledger.read(path) == []
        for number in range(3):
            ledger.append(path, {"number": number})
        assert ledger.read(path) == [{"number": 0}, {"number": 1}, {"number": 2}]

    @pytest.mark.parametrize("length", range(1, 18, 4))
    def test_a_line_cut_short_counts_for_none_and_spoils_no_other(
        self, tmp_path: Path, length: int
    ) -> None:
        path = tmp_path / "results.jsonl"
        for number in range(2):
            ledger.append(path, {"number": number, "é": "ü"})
        path.write_bytes(path.read_bytes()[:-length])
        assert [one["number"] for one in ledger.read(path)] == ([0, 1] if length == 1 else [0])
        ledger.append(path, {"number": 2})
        numbers = [one["number"] for one in ledger.read(path)]
        assert numbers == ([0, 1, 2] if length == 1 else [0, 2])

    def test_what_is_no_number_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        with pytest.raises(ValueError, match="JSON"):
            ledger.append(path, {"number": math.nan})
        assert not path.exists()


# -------------------------------------------------------------------------------------- the sources


def make_data(folder: Path, rows: int = 90) -> Path:
    """A made-up SST-2, and running text, in the layout of the real ones."""
    rng = random.Random(3)
    words = [word for line in texts() for word in line.split() if word.isalpha()]
    for split in ("train", "dev", "test"):
        lines = []
        for number in range(rows if split == "train" else 24):
            chosen = rng.sample(words, rng.randrange(3, 14))
            label = number % 2
            chosen[0] = ("wrong", "right")[label]
            lines.append(" ".join(chosen) + f"\t{label}\n")
        (folder / "sst2").mkdir(parents=True, exist_ok=True)
        (folder / "sst2" / f"{split}.tsv").write_text("".join(lines))
    (folder / "ag_news").mkdir(exist_ok=True)
    topics = [f'"{n % 2 + 1}","{words[n]}","{words[n + 1]}, {words[n + 2]}"\n' for n in range(60)]
    (folder / "ag_news" / "test.csv").write_text("".join(topics))
    make_questions(folder / "policyqa" / "dev.json", words, rng)
    for file in cells.TASKS["wnut17"].files.values():
        make_tags(folder / "wnut17" / file, words, rng)
    (folder / "wikitext2").mkdir(exist_ok=True)
    for split in ("valid", "test"):
        (folder / "wikitext2" / f"{split}.txt").write_text("\n".join(texts()[:80]) + "\n")
    return folder


def make_questions(path: Path, words: list[str], rng: random.Random) -> None:
    """Twelve sources of three texts each; a text begins with the number of its source."""
    data = []
    for source in range(12):
        paragraphs = []
        for number in range(3):
            context = " ".join([str(source), *rng.sample(words, 12)])
            answer = {"text": context.split()[1], "answer_start": context.index(" ") + 1}
            question = {"id": f"{source}-{number}", "question": "which ?", "answers": [answer]}
            paragraphs.append({"context": context, "qas": [question]})
        data.append({"title": str(source), "paragraphs": paragraphs})
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"data": data}))


def make_tags(path: Path, words: list[str], rng: random.Random) -> None:
    """Forty sentences; every other one has an entity, its first word."""
    path.parent.mkdir(exist_ok=True)
    sentences = [
        "".join(
            f"{word}\t{'B-x' if number % 2 and place == 0 else 'O'}\n"
            for place, word in enumerate(rng.sample(words, 8))
        )
        for number in range(40)
    ]
    path.write_text("\n".join(sentences))


@functools.cache
def texts() -> list[str]:
    return [line.lower() for line in sources.python_manual()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of an encoder, but small: words, cut at blanks."""
    folder = tmp_path_factory.mktemp("encoder")
    words = {word for line in texts() for word in line.split()} | {"right", "wrong"}
    save_model(folder, sorted(words))
    return folder


class TestSources:
    def test_the_manual_is_prose(self) -> None:
        lines = list(sources.python_manual())
        assert len(lines) > 500
        assert all(len(line.split()) >= 10 for line in lines)
        assert not any(mark in line for line in lines for mark in ("*", "`", "\n", ":class:"))
        text = "\n".join(lines)
        assert "The behavior of the" in text
        assert "module ::= " not in text  # the grammar's rules are indented

    def test_rows_of_similar_length_lie_side_by_side(self) -> None:
        rng = random.Random(1)
        rows = [
            SimpleNamespace(texts=("a " * rng.randrange(1, 40), "b " * rng.randrange(1, 9)))
            for _ in range(300)
        ]
        ordered = sources.by_length(rows, rng)
        assert sorted(map(id, ordered)) == sorted(map(id, rows))
        lengths = [sum(len(text.split()) for text in row.texts) for row in ordered]
        assert all(later >= earlier - 4 for earlier, later in pairwise(lengths))
        assert lengths != sorted(lengths)  # not by length alone: batches differ from draw to draw

    def test_a_part_is_drawn_by_its_seed(
        self, data: Path, vocabulary: Path, tmp_path: Path
    ) -> None:
        made = sources.Sources(tmp_path, data, vocabulary)
        folders = [
            made.task("sst2", size, draw, 40) for size, draw in ((20, 1), (20, 2), (None, 1))
        ]
        assert len(set(folders)) == 3
        records = [DataRecord.load(folder) for folder in folders]
        assert [record.splits["train"].rows for record in records] == [20, 20, 90]
        assert {record.splits["test"].rows for record in records} == {24}
        again = sources.Sources(tmp_path / "again", data, vocabulary).task("sst2", 20, 1, 40)
        first, second, third = (
            (folder / "input0" / "train.bin").read_bytes() for folder in (again, *folders[:2])
        )
        assert first == second != third

    def test_texts_of_one_source_are_in_one_split(
        self, data: Path, vocabulary: Path, tmp_path: Path
    ) -> None:
        made = sources.Sources(tmp_path, data, vocabulary).task("policyqa", None, 1, 40)
        found = {
            split: [row.texts[1].split()[0] for row in read_texts(made, split, SpanPrediction())]
            for split in cells.SHARES
        }
        assert {split: set(numbers) for split, numbers in found.items()} == {
            "train": set("012367") | {"8", "9"}, "valid": {"4", "10"}, "test": {"5", "11"},
        }  # fmt: skip
        assert all(len(numbers) == 3 * len(set(numbers)) for numbers in found.values())

    def test_tagged_sentences_to_train_on_have_an_entity(
        self, data: Path, vocabulary: Path, tmp_path: Path
    ) -> None:
        made = sources.Sources(tmp_path, data, vocabulary).task("wnut17", None, 1, 40)
        record = DataRecord.load(made)
        assert set(record.problem.labels) == {"O", "B-x"}
        assert {name: split.rows for name, split in record.splits.items()} == {
            "train": 20, "valid": 40, "test": 40,
        }  # fmt: skip
        rows = read_texts(made, "train", record.problem)
        assert all(row.label.split() == ["B-x", *["O"] * 7] for row in rows)

    def test_other_data_or_another_encoder_are_not_taken_for_the_same(
        self, data: Path, vocabulary: Path, tmp_path: Path
    ) -> None:
        other = make_data(tmp_path / "other", rows=91)
        words = (line.split()[0] for line in (vocabulary / "dict.txt").read_text().splitlines())
        save_model(tmp_path / "bigger", words, encoder_layers=3)
        folders = {
            sources.Sources(tmp_path / "out", where, encoder).task("sst2", 20, 1, 40)
            for where, encoder in (
                (data, vocabulary),
                (other, vocabulary),
                (data, tmp_path / "bigger"),
            )
        }
        assert len(folders) == 3

    def test_too_few_rows(self, data: Path, vocabulary: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="has 90 rows, fewer than 91"):
            sources.Sources(tmp_path, data, vocabulary).task("sst2", 91, 1, 40)
        assert not list((tmp_path / "data").glob("sst2*"))


# --------------------------------------------------------------------------------------- the grid

# Instead of worker.py: what it does is in the cell's method.
STAND_IN = """
import json, os, subprocess, sys, time
from pathlib import Path
sys.path.append({common!r})
from orphans import end_with
told = json.loads(Path(sys.argv[1]).read_text())
cell, paths = told["cell"], told["paths"]
if cell["method"] != "hangs on":
    end_with(int(sys.argv[2]))
output = Path(paths["output"])
with (output / "began").open("a") as file:
    file.write(json.dumps([cell["method"], cell["seed"], time.time()]) + "\\n")
tries = (output / "began").read_text().count('"' + cell["method"] + '", ' + str(cell["seed"]) + ",")
if cell["method"] == "fails" or cell["method"] == "fails once" and tries == 1:
    print("no such luck")
    sys.exit(3)
if cell["method"] in ("hangs", "hangs on"):
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)", str(output)])
time.sleep(0.1)
if cell["task"] == "text":
    (output / "models").mkdir(exist_ok=True)
    (output / "models" / (paths["key"] + ".pt")).write_text("")
result = {{name: cell[name] for name in ("study", "task", "method", "seed")}}
result |= {{"key": paths["key"], "status": "done", "metric": "clean.accuracy"}}
result |= {{"test": {{"clean.accuracy": 50.0}}, "started_from": paths["start"]}}
(output / "work" / paths["key"] / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN.format(common=str(ROOT / "examples" / "common")))
    return path


Run = Callable[..., SimpleNamespace]


def options_of(method: str) -> dict[str, Any]:
    """Of each method others, so that none is another's twin."""
    return {"alum-epsilon": zlib.crc32(method.encode())}


@pytest.fixture
def run(tmp_path: Path, data: Path, vocabulary: Path, stand_in: Path) -> Run:
    """Run cells, named by method and seed, in a folder that stays the same."""

    def run(*named: tuple[str, int] | Cell, cores: int = 1, hours: float = math.inf) -> Any:
        chosen = [
            one
            if isinstance(one, Cell)
            else replace(CELL, method=one[0], seed=one[1], options=options_of(one[0]))
            for one in named
        ]
        said = io.StringIO()
        output = tmp_path / "output"
        output.mkdir(exist_ok=True)
        (output / "began").write_text("")
        runner = grid.Grid(
            output, data, vocabulary, cores, hours, Screen(said), pause=0.02, worker=stand_in
        )
        failed = runner.run(chosen)
        began = [json.loads(line) for line in (output / "began").read_text().splitlines()]
        return SimpleNamespace(
            failed=failed,
            began=[(method, seed) for method, seed, _ in began],
            lines=ledger.read(runner.results),
            said=said.getvalue(),
            output=output,
        )

    return run


def named(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(line["method"], line["seed"], line["status"]) for line in lines]


class TestGrid:
    def test_cells_in_their_order_each_a_line(self, run: Run) -> None:
        done = run(("a", 1), ("b", 1), ("a", 2))
        assert done.began == [("a", 1), ("b", 1), ("a", 2)]
        assert named(done.lines) == [(*cell, "done") for cell in done.began]
        assert done.failed == 0
        assert "3 cells to run" in done.said
        assert not any((done.output / "work").iterdir())

    def test_what_is_done_is_not_run_again(self, run: Run) -> None:
        run(("a", 1), ("b", 1))
        done = run(("a", 1), ("c", 1), ("b", 1))
        assert done.began == [("c", 1)]
        assert "1 cells to run" in done.said
        assert named(done.lines) == [(name, 1, "done") for name in "abc"]

    def test_a_result_that_was_cut_short_is_made_again(self, run: Run) -> None:
        results = run(("a", 1), ("b", 1)).output / "results.jsonl"
        results.write_bytes(results.read_bytes()[:-9])
        done = run(("a", 1), ("b", 1))
        assert done.began == [("b", 1)]
        assert named(done.lines) == [("a", 1, "done"), ("b", 1, "done")]

    def test_one_that_fails_is_tried_once_more_and_stops_no_other(self, run: Run) -> None:
        done = run(("fails", 1), ("fails once", 1), ("a", 1))
        assert done.failed == 1
        assert sorted(done.began) == [("a", 1)] + [("fails", 1)] * 2 + [("fails once", 1)] * 2
        assert done.began[2] == ("a", 1)  # the second try comes last
        assert sorted(named(done.lines)) == [
            ("a", 1, "done"),
            ("fails", 1, "failed"), ("fails", 1, "failed"),
            ("fails once", 1, "done"), ("fails once", 1, "failed"),
        ]  # fmt: skip
        errors = [line for line in done.lines if line["status"] == "failed"]
        assert all("no such luck" in line["error"] for line in errors)
        assert sorted(line["attempt"] for line in errors) == [1, 1, 2]
        assert "finetuning/sst2/fails/1 failed; it is tried once more" in done.said

    def test_one_that_failed_is_tried_again_next_time(self, run: Run) -> None:
        run(("fails once", 1), ("fails", 1))
        done = run(("fails once", 1), ("fails", 1))
        assert done.began == [("fails", 1)] * 2

    def test_side_by_side(self, run: Run) -> None:
        done = run(*((name, 1) for name in "abcdefg"), cores=3)
        assert sorted(named(done.lines)) == [(name, 1, "done") for name in "abcdefg"]
        assert sorted(done.began[:3]) == [("a", 1), ("b", 1), ("c", 1)]

    def test_twins_are_run_once_and_have_a_line_each(self, run: Run) -> None:
        twin = replace(CELL, study="full", method="other", options=options_of("a"))
        done = run(("a", 1), twin)
        assert done.began == [("a", 1)]
        assert named(done.lines) == [("a", 1, "done"), ("other", 1, "done")]
        assert [line.get("first_study") for line in done.lines] == [None, "finetuning"]
        third = replace(twin, method="third")
        again = run(third, ("a", 1), twin)
        assert again.began == []
        assert named(again.lines)[2:] == [("third", 1, "done")]

    def test_pre_training_comes_first_and_is_made_once(self, run: Run) -> None:
        start = replace(CELL, task="text", method="start")
        first, second = (
            replace(CELL, start=start, method=name, seed=seed) for seed, name in enumerate("ab")
        )
        done = run(first, second, cores=2)
        assert done.began[0] == ("start", 1)
        assert sorted(done.began[1:]) == [("a", 0), ("b", 1)]
        assert {line["started_from"] for line in done.lines} == {None, start_key(done.lines)}
        # Its model is gone: it is needed again, the results are not.
        for model in (done.output / "models").iterdir():
            model.unlink()
        assert run(first, second, start).began == []
        assert [name for name, _ in run(replace(first, seed=9)).began] == ["start", "a"]

    def test_what_starts_from_a_failed_one_is_left_out(self, run: Run) -> None:
        start = replace(CELL, task="text", method="fails")
        further = replace(start, method="b", seed=2, start=start)
        done = run(replace(CELL, start=further, method="a"), ("c", 1))
        assert done.failed == 3
        assert [name for name, _ in done.began] == ["fails", "c", "fails"]
        assert "finetuning/sst2/a/1 is left out" in done.said

    def test_no_cell_is_begun_when_time_is_up(self, run: Run) -> None:
        many = [("a", seed) for seed in range(1, 100)]
        done = run(*many, hours=1.5 / 3600, cores=2)
        assert 0 < len(done.began) < 99
        assert sorted(named(done.lines)) == [(*cell, "done") for cell in sorted(done.began)]
        assert f"time is up; {99 - len(done.began)} cells are left" in done.said
        assert done.failed == 0

    def test_a_result_that_cannot_be_read_is_a_failure(self, run: Run, stand_in: Path) -> None:
        stand_in.write_text(stand_in.read_text().replace("json.dumps(result)", "'{\"half\": '"))
        done = run(("a", 1))
        assert named(done.lines) == [("a", 1, "failed")] * 2

    def test_left_from_a_machine_that_stopped(self, run: Run) -> None:
        work = run(("a", 1)).output / "work" / "0123"
        work.mkdir(parents=True)
        run(("a", 1))
        assert not work.exists()

    def test_missing_data_are_named(self, run: Run, data: Path) -> None:
        with pytest.raises(UsageError, match=f"{data}/cola does not exist"):
            run(replace(CELL, task="cola"))

    @pytest.mark.parametrize(
        ("how", "method"),
        [
            # It ends what it started ...
            (signal.SIGINT, "hangs on"),
            (signal.SIGTERM, "hangs on"),
            # ... or cannot, and this ends by itself.
            (signal.SIGKILL, "hangs"),
            (signal.SIGHUP, "hangs"),
        ],
    )
    def test_a_grid_that_ends_leaves_no_orphan(
        self, how: signal.Signals, method: str, run: Run, tmp_path: Path
    ) -> None:
        run(("a", 1))

        def begin() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, grid._stop)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, of the tests, ignores it
            os.setsid()
            run(("a", 1), (method, 1), (method, 2), ("b", 1), cores=2)

        process = multiprocessing.get_context("fork").Process(target=begin)
        process.start()
        output = tmp_path / "output"
        wait_until(lambda: len(processes_about(output)) == 4)  # two, and what each of them started
        assert process.pid
        os.kill(process.pid, how)
        process.join()
        wait_until(lambda: not processes_about(output))
        done = run(("a", 1), ("b", 1))
        assert done.began == [("b", 1)]

    def test_two_grids_in_one_folder(self, run: Run) -> None:
        output = run(("a", 1)).output
        with grid._only_one(output), pytest.raises(UsageError, match=f"another grid .* {output}"):
            run(("b", 1))


def start_key(lines: list[dict[str, Any]]) -> str:
    return next(line["key"] for line in lines if line["task"] == "text")


def processes_about(folder: Path) -> list[int]:
    """The processes, but this one and its forks, that were told of a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def command(*words: Any) -> Ended:
    return run_command(grid.main, *words)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _handler(self) -> Iterator[None]:
        """The command takes SIGTERM over, which here is the tests' own."""
        before = signal.getsignal(signal.SIGTERM)
        yield
        signal.signal(signal.SIGTERM, before)

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            (["--cores", "0"], "--cores is 0: it must be 1 or more"),
            (["--hours", "-1"], "--hours is -1: it must be above 0"),
            (["--cells", "nothing"], "--cells nothing: there is no such cell; --list shows"),
            ([], "give --data, the folder of the data sets"),
            (["--data", "nowhere"], "nowhere does not exist"),
            (["--data", "DATA", "--encoder", "nowhere"], "nowhere does not exist"),
            (["--data", "DATA", "--encoder", "DATA"], "has no weights: no model.pt"),
            (["--data", "DATA", "--encoder", "ENCODER", "--cells", "tune"], "sick does not exist"),
        ],
    )
    def test_wrong_usage_is_one_line(
        self, words: list[str], error: str, data: Path, vocabulary: Path, tmp_path: Path
    ) -> None:
        places = {"DATA": data, "ENCODER": vocabulary}
        ended = command(tmp_path / "out", *(places.get(word, word) for word in words))
        assert error in ended.error
        assert not (tmp_path / "out" / "results.jsonl").exists()

    def test_list(self, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        gone = replace(CELL, method="every-4th", options={"alum-epsilon": 4.0})
        output = run(replace(CELL, method="plain"), gone, replace(gone, seed=2)).output
        assert grid.main([str(output), "--list", "--cells", "finetuning/sst2/*/1", "tune"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["2.67", "finetuning/sst2/calibrated/1"]
        assert lines[1].split() == ["done", "1.00", "finetuning/sst2/plain/1"]
        assert lines[-1] == "run at 97b99b5, its options are gone: finetuning/sst2/every-4th/1"
        assert len(lines) == 10 + 16 + 1

    def test_from_the_command_line(
        self, data: Path, vocabulary: Path, stand_in: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        quick = functools.partial(grid.Grid, worker=stand_in, pause=0.02)
        monkeypatch.setattr(grid, "Grid", quick)
        words = ["--data", data, "--encoder", vocabulary, "--cells", "tune/sst2", "--cores", "4"]
        for found in ("8 cells to run", "0 cells to run"):
            assert grid.main([str(word) for word in (tmp_path / "out", *words)]) == 0
            assert found in capsys.readouterr().out
        assert len(ledger.read(tmp_path / "out" / "results.jsonl")) == 8


# ------------------------------------------------------------------------------------ the analysis


def result(cell: Cell, **changed: Any) -> dict[str, Any]:
    """A line as the worker writes it, of made-up numbers that depend on the cell's name alone."""
    rng = random.Random(cell.name)
    if cell.pretrains:
        metric, logged = "ppl", "valid_ppl"
        test = {"ppl": rng.uniform(50, 99), "adv_ppl": rng.uniform(100, 200), "gain": 12.0}
    else:
        metric, logged = cells.TASKS[cell.task].measure, f"valid_{cells.TASKS[cell.task].metric}"
        keys = (metric, *(column.key for column in analyse.ROBUSTNESS))
        test = {key: rng.uniform(0, 100) for key in keys}
    radii = [*(rng.uniform(0, 0.2) for _ in range(5)), None]
    line = {
        **{"study": cell.study, "task": cell.task, "method": cell.method, "seed": cell.seed},
        **{"key": cell.key(DIGESTS), "status": "done", "size": cell.size, "factor": cell.factor},
        **{"options": dict(cell.options), "resolved": cell.resolved, "revision": 1},
        **{"recipe": asdict(cell.recipe), "effort": asdict(cell.effort)},
        "start": cell.start.method if cell.start else None,
        "flops_factor": cell.flops_factor,
        **{"updates": 10, "train_seconds": 100.0, "train_cpu_seconds": 90.0},
        **{"update_seconds": 60.0, "update_cpu_seconds": 55.0, "seconds": 150.0},
        **{"gain": 3.0, "train_loss": [1.0]},
        "curve": [{"valid_num_updates": n, "valid_loss": 1.0, logged: 50.0 + n} for n in (5, 10)],
        **{"metric": metric, "dev": rng.uniform(0, 100), "test": test},
        "radii": {} if cell.pretrains else {"linf": radii, "l2": radii},
        "machine": {"processor": "a processor", "threads": 1, "gpu": None},
        "versions": {"python": "3"},
        **changed,
    }
    return json.loads(json.dumps(line))


def results_of(**values: list[float]) -> summary.Results:
    """Runs of SST-2: of each method the metric of seeds 1, 2, ..."""
    lines = [
        result(replace(CELL, method=method, seed=seed), test={"clean.accuracy": value})
        for method, all_of_it in values.items()
        for seed, value in enumerate(all_of_it, start=1)
    ]
    return summary.Results(lines)


METRIC = summary.measure("metric")


class TestNumbers:
    def test_mean_with_students_interval(self) -> None:
        found = results_of(plain=[80, 82, 84]).mean("plain", METRIC)
        # Standard deviation 2, t of 2 degrees of freedom 4.3027.
        half = 4.302653 * 2 / math.sqrt(3)
        assert dataclasses.astuple(found) == pytest.approx((82, 82 - half, 82 + half, 3))

    def test_one_run_has_no_interval(self) -> None:
        found = results_of(plain=[80]).mean("plain", METRIC)
        assert (found.value, found.count) == (80, 1)
        assert math.isnan(found.low)
        assert math.isnan(found.high)

    def test_runs_that_are_all_alike(self) -> None:
        assert summary.mean_of_groups([[3.0, 3.0], [5.0, 5.0]]) == summary.Estimate(4, 4, 4, 4)

    def test_mean_of_tasks(self) -> None:
        # Variances of the means 1/3 and 1/12, hence 0.4167 of their sum; Welch and Satterthwaite's
        # degrees of freedom 0.4167**2 / ((1/3)**2 / 2 + (1/12)**2 / 2) = 2.941, t 3.21876.
        found = summary.mean_of_groups([[3, 2, 4], [1, 1.5, 0.5]])
        half = 3.218759 * math.sqrt(5 / 12) / 2
        assert dataclasses.astuple(found) == pytest.approx((2, 2 - half, 2 + half, 6))

    def test_difference_pairs_seeds(self) -> None:
        found = results_of(plain=[80, 82, 84], ours=[83, 84, 88, 99]).difference(
            "ours", "plain", METRIC
        )
        # Differences 3, 2, 4; the fourth seed has no partner.
        half = 4.302653 * 1 / math.sqrt(3)
        assert dataclasses.astuple(found.estimate) == pytest.approx((3, 3 - half, 3 + half, 3))
        assert found.p == pytest.approx(2 / 2**3, abs=0.01)  # all signs alike: 2 of 8

    def test_p_by_hand(self) -> None:
        # Of the 16 ways to choose signs of 3, 2, 4, -1, those with a sum of 8 or more: 8, 10, and
        # as many below.
        pairs = [(3.0, 0.0), (2.0, 0.0), (4.0, 0.0), (0.0, 1.0)]
        assert summary.paired_p([pairs]) == pytest.approx(4 / 16, abs=0.01)
        # The mean over two tasks of their means is 1 - 1.5. Other signs bring it never nearer to 0,
        # though the sum over runs, 6 - 1.5, could be.
        one_sided = [[(1.0, 0.0)] * 6, [(0.0, 1.5)]]
        assert summary.paired_p(one_sided) == 1
        assert math.isnan(summary.paired_p([pairs[:1]]))

    def test_a_number_that_is_not_known_is_left_out(self) -> None:
        results = results_of(plain=[80, 82, 84])
        results.lines[1]["test"]["clean.accuracy"] = None
        assert results.values("plain", "sst2", METRIC) == {1: 80, 3: 84}
        assert results.mean("plain", summary.measure("noise.0.2")).count == 0

    def test_runs_with_other_recipes_or_sizes_are_no_pair(self) -> None:
        for name, value in (("recipe", {"rate": 3}), ("size", 7)):
            results = results_of(plain=[80, 82], ours=[83, 84])
            results.lines[0][name] = value
            assert results.pairs("ours", "plain", "sst2", METRIC) == [(84, 82)]

    def test_a_run_on_a_gpu_and_one_on_a_processor_are_no_pair(self) -> None:
        results = results_of(plain=[80, 82, 84], ours=[83, 84, 85])
        for number in (0, 1, 4):  # of seed 1 one, of seed 2 both
            results.lines[number]["machine"]["gpu"] = "a GPU"
        assert results.pairs("ours", "plain", "sst2", METRIC) == [(84, 82), (85, 84)]

    @pytest.mark.parametrize(
        "changed",
        [
            {"resolved": {}},
            {"recipe": {}},
            {"size": 3},
            {"factor": 2},
            {"effort": {}},
            {"revision": 0},
        ],
        ids=str,
    )
    def test_runs_before_a_change_do_not_count(self, changed: dict[str, Any]) -> None:
        lines = [result(replace(CELL, seed=seed)) for seed in (1, 2, 3)]
        assert len(summary.current(lines, "finetuning")) == 3
        before = [{**line, **changed} for line in lines]
        found = summary.current([*before, lines[0], lines[2]], "finetuning")
        assert found == [lines[0], lines[2]]

    def test_of_a_cell_that_was_run_twice_the_last_counts(self) -> None:
        first, second = (result(CELL, dev=dev) for dev in (1, 2))
        failed = {**first, "status": "failed"}
        other = result(replace(CELL, study="full"))
        assert summary.current([first, second, failed, other], "finetuning") == [second]

    def test_time_is_that_of_the_updates(self) -> None:
        lines = [
            result(replace(CELL, method="plain"), update_seconds=40.0, update_cpu_seconds=20.0),
            # Half as fast by the clock, since the machine was busy: as much work.
            result(CELL, update_seconds=200.0, update_cpu_seconds=50.0),
        ]
        results = summary.Results(lines)
        assert analyse.cost_ratio(results, "calibrated") == pytest.approx(50 / 20)
        for line in lines:
            line["machine"]["gpu"] = "a GPU"
        assert analyse.cost_ratio(results, "calibrated") == pytest.approx(200 / 40)
        assert math.isnan(analyse.cost_ratio(summary.Results(lines[1:]), "calibrated"))
        lines[0]["machine"]["gpu"] = "another GPU"
        assert math.isnan(analyse.cost_ratio(results, "calibrated"))

    def test_processors_of_one_name_are_told_apart(self) -> None:
        core = "processor\t: {n}\nmodel name\t: A Processor: 3 GHz\nflags\t\t: fpu {flags}\n\n"
        older, newer = (
            worker.processor_in(core.format(n=0, flags=flags) + core.format(n=1, flags=flags))
            for flags in ("sse avx2", "sse avx2 avx512_bf16x avx512f amx_bf16")
        )
        assert older == "A Processor: 3 GHz (avx2)"
        assert newer == "A Processor: 3 GHz (avx2, avx512f, amx_bf16)"
        assert worker.processor_in("processor\t: 0\nBogoMIPS\t: 243.75\n") == ""

    def test_a_median_beyond_every_radius_is_not_known(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A model that most attacks do not break; JSON has no infinity."""
        found = {"l2.median": math.inf, "smoothness.gain": math.nan, "l2.area": 88.5, "x": None}
        values = [{"key": key, "values": {"model": {"value": found[key]}}} for key in found]
        problem = SimpleNamespace(name="", labels=(), categorical=True)
        predictor = SimpleNamespace(problem=SimpleNamespace(within=lambda *_: problem))
        monkeypatch.setattr(worker.Predictor, "load", lambda *_, **__: predictor)
        monkeypatch.setattr(worker, "from_prepared", lambda *_: [])
        monkeypatch.setattr(worker, "Subject", lambda *_: None)
        monkeypatch.setattr(worker, "_parts", lambda _: [])
        monkeypatch.setattr(worker, "build_report", lambda **_: {"measures": values})
        measured = worker.measure(cells.NOTHING, Path("model.pt"), Path("data"))["test"]
        assert measured == dict.fromkeys(found) | {"l2.area": 88.5}

    @pytest.mark.parametrize("gpu", [False, True])
    def test_measured_where_it_was_trained(
        self, gpu: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class LoadedError(Exception):
            """Enough was seen."""

        def load(*_: Any, device: str, **__: Any) -> None:
            raise LoadedError(device)

        monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
        monkeypatch.setattr(worker.Predictor, "load", load)
        with pytest.raises(LoadedError, match="cuda" if gpu else "cpu"):
            worker.measure(cells.NOTHING, Path("model.pt"), Path("data"))
        assert ("--cpu" in worker.attack_command(Path("data"), Path("model.pt"))) is not gpu

    def test_time_is_work_not_waiting(self) -> None:
        watch = tool.Stopwatch()

        def wait_and_work(seconds: float) -> str:
            time.sleep(0.5)
            until = time.process_time() + seconds
            while time.process_time() < until:
                pass
            return "done"

        assert [watch.on(wait_and_work)(0.05) for _ in range(2)] == ["done"] * 2
        assert 0.1 <= watch.seconds < 0.5


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of figures that would have been drawn; a p-value takes few trials."""
    names: list[str] = []
    monkeypatch.setattr(pictures, "draw", lambda path, *_, **__: names.append(path.name))
    monkeypatch.setattr(summary, "_TRIALS", 200)
    return names


def report(lines: list[dict[str, Any]], folder: Path = Path()) -> str:
    return "\n".join(analyse.report(lines, folder))


def row(text: str, head: str, first: str, table: str = "|") -> dict[str, str]:
    """The row of the first table that begins so, under the first heading that does."""
    text = text[text.index(f"# {head}") :]
    lines = text[text.index(f"\n{table}") + 1 :].splitlines()
    names, values = lines[0], next(line for line in lines if line.startswith(f"| {first} |"))
    return dict(zip(*([cell.strip() for cell in line.strip("|").split("|")]
                      for line in (names, values)), strict=True))  # fmt: skip


class TestReport:
    def test_a_row_by_hand(self, drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(summary, "_TRIALS", 20_000)
        lines = results_of(plain=[80, 82, 84], calibrated=[83, 84, 88]).lines
        for line in lines[:3]:
            line["factor"] = 2.0
        text = report(lines)
        ours = row(text, "SST-2", "calibrated")
        assert ours["runs"] == "3"
        assert ours["test metric"] == "85.0 ± 6.6"
        assert ours["minus plain"] == "+3.00 (+0.52..+5.48)"
        assert ours["higher in"] == "3 of 3"
        assert float(ours["p"]) == pytest.approx(0.25, abs=0.01)
        assert ours["p adjusted"] == ours["p"]
        assert (ours["time"], ours["FLOPs"]) == ("1.00", "2.67")
        assert row(text, "SST-2", "plain") == {
            **{"method": "plain", "runs": "3", "test metric": "82.0 ± 5.0"},
            **{"minus plain": "", "higher in": "", "p": "", "p adjusted": ""},
            **{"time": "1.00", "FLOPs": "5.33"},
        }

    def test_gains_task_by_task(self, drawn: list[str]) -> None:
        metric = {"sst2": [80.0, 83.0], "cola": [10.0, 6.0]}
        lines = [
            result(cell, test={cells.TASKS[cell.task].measure: value, "noise.0.2": 50.0})
            for cell in ALL
            if (cell.study, cell.method) in {("accuracy", "plain"), ("accuracy", "fgm")}
            and cell.task in metric
            and cell.seed < 3
            for value in [50.0 if cell.method == "plain" else metric[cell.task][cell.seed - 1]]
        ]
        found = row(report(lines), "Mean of", "fgm", "| test metric minus plain |")
        assert found["SST-2 (accuracy)"] == "+31.50, 2 of 2"
        assert found["CoLA, out of domain (Matthews x 100)"] == "-42.00, 0 of 2"

    def test_what_was_not_attacked_has_learning_curves_alone(
        self, drawn: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        curves: list[list[str]] = []
        monkeypatch.setattr(pictures, "learning", lambda _, methods, *__: curves.append([*methods]))
        chosen = [cell for cell in ALL if cell.study == "accuracy" and cell.seed == 1]
        lines = [result(cell) for cell in chosen]
        methods = ["plain", *list(cells.SMALL)[1:4]]
        assert "SST-2 (accuracy): right answers left under attack, and" in report(lines)
        assert curves == [methods] * 5  # not all seven, which could not be told apart
        for line in lines:
            line["radii"] = {}
        text = report(lines)
        assert "SST-2 (accuracy): learning curves; bands" in text
        assert "right answers left under attack, and" not in text

    def test_all_versions_that_were_used(self, drawn: list[str]) -> None:
        lines = results_of(plain=[80, 81]).lines
        lines[0]["versions"] = {"python": "3", "torch": "2.11"}
        lines[1]["versions"] = {"torch": "2.13"}
        assert "; python 3, torch 2.11 or 2.13.\n" in report(lines)

    def test_by_how_much_a_gpu_and_a_processor_differ(self, drawn: list[str]) -> None:
        lines = results_of(plain=[80, 82, 84]).lines
        assert "on both a GPU and a processor" not in report(lines)
        again = json.loads(json.dumps(lines[:2]))
        for line, value in zip(again, (83, 81), strict=True):
            line["study"], line["machine"]["gpu"] = "price", "a GPU"
            line["test"]["clean.accuracy"] = value
        text = result(next(cell for cell in ALL if cell.pretrains))
        again += [text, {**text, "machine": again[0]["machine"]}]  # has no accuracy
        assert (
            "\n2 runs were made on both a GPU and a processor, and differ in "
            "test metric by 2.0 (GPU minus processor +1.0).\n" in report(lines + again)
        )

    def test_gains_over_the_preset(self, drawn: list[str]) -> None:
        lines = results_of(plain=[80, 82], calibrated=[83, 84], paper=[84, 88]).lines
        found = row(report(lines), "SST-2", "paper", "| minus calibrated |")
        assert found["test metric"].startswith("+2.5 (")
        assert "| minus calibrated |" not in report(lines[:4])

    def test_the_whole_batch_is_the_preset(self) -> None:
        whole = next(cell for cell in cells.price() if cell.method == "fraction 1")
        preset = replace(whole, options=cells.CALIBRATED)
        assert whole.key(DIGESTS) == preset.key(DIGESTS)

    def test_gains_in_robustness_are_those_of_the_seeds_that_both_have(
        self, drawn: list[str]
    ) -> None:
        lines = results_of(plain=[80, 80, 80], calibrated=[80, 80]).lines
        for line, area in zip(lines, (30, 32, 99, 40, 44), strict=True):
            line["test"]["linf.area"] = area
        text = report(lines)
        assert "\n| minus plain | Linf |\n" in text
        # Gains of 10 and 12: standard deviation 1.41, t of 1 degree of freedom 12.706.
        assert "\n| calibrated | +11.0 (-1.7..+23.7) |\n" in text

    @pytest.mark.parametrize(
        ("gains", "verdict"),
        [([3, 3, 3], "not known yet"), ([3] * 8, "met"), ([3, -2] * 4, "missed")],
    )
    def test_a_target_can_be_missed_only_when_it_could_be_met(
        self, gains: list[float], verdict: str, drawn: list[str]
    ) -> None:
        lines = results_of(plain=[80] * len(gains), calibrated=[80 + gain for gain in gains]).lines
        found = row(report(lines), "Targets", "test metric above plain, p < 0.05")
        assert found[""] == verdict

    def test_targets_are_judged_on_the_tasks_that_both_ran_on(self, drawn: list[str]) -> None:
        run = [("plain", "sst2"), ("calibrated", "sst2"), ("paper", "sst2"), ("reference", "cola")]
        run += [("plain", "sick-e"), ("calibrated", "sick-e"), ("calibrated", "cola")]
        chosen = [cell for cell in in_order("finetuning") if cell.seed == 1
                  and (cell.method, cell.task) in run]  # fmt: skip
        text = report([result(cell) for cell in chosen])
        for target, tasks in (
            ("test metric above plain, p < 0.05", "sst2, sick-e"),
            ("test metric at least that of paper", "sst2"),
            ("test metric at least that of reference", "cola"),
        ):
            assert row(text, "Targets", target)["tasks"] == tasks

    def test_everything_of_all_studies(self, drawn: list[str]) -> None:
        text = report([result(cell) for cell in ALL])
        for study in cells.STUDIES:
            assert f"\n## {study}\n" in text
        assert "Incomplete" not in text
        assert "Left out" not in text
        assert "nan" not in text
        assert set(drawn) == set(re.findall(r"\]\((.*?)\)\n", text))
        assert len(drawn) == len(set(drawn))
        assert all(re.fullmatch(r"[a-z0-9-]+\.png", name) for name in drawn)
        for line in text.splitlines():  # a table can be read where a page has 11 columns
            assert line.count("|") <= 12, line

    @pytest.mark.parametrize("study", cells.STUDIES)
    def test_however_little_there_is(self, study: str, drawn: list[str]) -> None:
        chosen = in_order(study)
        for count in (1, 3, 9, len(chosen) - 1):
            text = report([result(cell) for cell in chosen[:count]])
            assert f"*Incomplete: {len(chosen) - count} of {len(chosen)} cells: " in text
            assert chosen[count].name in text
            assert "nan" not in text

    def test_methods_are_compared_on_the_same_tasks(self, drawn: list[str]) -> None:
        methods = ("plain", "calibrated", "paper")
        run = [(method, task) for task in ("sst2", "cola") for method in methods]
        run += [("plain", "sick-e"), ("reference", "sst2")]
        chosen = [cell for cell in ALL if cell.study == "finetuning" and cell.seed == 1
                  and (cell.method, cell.task) in run]  # fmt: skip
        text = report([result(cell) for cell in chosen])
        assert "### Mean of the tasks: sst2, cola" in text
        assert "*Left out, since not run on sst2, cola: reference.*" in text
        assert row(text, "Mean of", "paper")["runs"] == "2"

    def test_the_presets_values_are_marked(self, drawn: list[str]) -> None:
        text = report([result(cell) for cell in in_order("calibrate")])
        finetuned, pretrained = text.split("### Pre-training", 1)
        for part, pretraining in ((finetuned, False), (pretrained, True)):
            marked = re.findall(r"^\| \*\*(.*?)\*\* \(preset\)", part, flags=re.MULTILINE)
            alpha = cells.resolved(cells.CALIBRATED, pretraining)["alum-alpha"]
            assert f"{alpha:g}" in marked
            assert not ({"0.3", "1", "3", "10"} - {f"{alpha:g}"}) & set(marked)
            if not pretraining:
                assert {"shared", "0"} <= set(marked)  # 0: the layer, of which the preset is silent
                assert "independent" not in marked

    def test_of_a_factor_each_task_has_a_table_of_all_that_ran(self, drawn: list[str]) -> None:
        everywhere = ("plain", "alpha: 1", "alpha: 10")
        ran = {(method, task) for method in everywhere for task in ("sst2", "sick-e")}
        chosen = [cell for cell in in_order("calibrate") if cell.seed == 1
                  and (cell.method, cell.task) in ran | {("alpha: 3", "sst2")}]  # fmt: skip
        text = report([result(cell) for cell in chosen])
        both, sst2, sick = re.split(r"^(?:SST-2|SICK).*:$", text[text.index("### Fine-tuning") :],
                                    flags=re.MULTILINE)  # fmt: skip
        assert ["\n| 3 |" in part for part in (both, sst2, sick)] == [False, True, False]
        assert all("\n| plain |" in part for part in (both, sst2, sick))

    def test_the_report_in_the_repository_is_of_the_results_beside_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names: list[str] = []
        monkeypatch.setattr(pictures, "draw", lambda path, *_, **__: names.append(path.name))
        folder = ROOT / "docs" / "evidence"
        text = report(ledger.read(folder / "results.jsonl"), folder)
        assert (folder / "report.md").read_text() == text + "\n"
        assert sorted(names) == sorted(path.name for path in folder.glob("*.png"))

    def test_plain_and_calibrated_side_by_side(
        self, drawn: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(summary, "_TRIALS", 20_000)
        chosen = [cell for cell in ALL if cell.study == "finetuning" and cell.seed < 4
                  and cell.method in ("plain", "calibrated")]  # fmt: skip
        lines = [result(cell) for cell in chosen]
        gains = {1: 10.0, 2: -4.0, 3: 3.0}  # of calibrated, under the greedy attack, by seed
        for line in lines:
            gained = gains[line["seed"]] if line["method"] == "calibrated" else 0.0
            line["test"] = {**line["test"], "greedy.accuracy": 20.0 + gained}
        found = row(report(lines), "calibrated and plain, mean of the tasks: ", "greedy")
        assert (found["plain"], found["calibrated"]) == ("20.0", "23.0")
        assert found["difference"].startswith("+3.00 (")
        assert found["higher in"] == "8 of 12"
        # All ways to swap the runs of the twelve pairs.
        pairs = list(gains.values()) * 4
        signs = product((1, -1), repeat=len(pairs))
        sums = [sum(s * v for s, v in zip(some, pairs, strict=True)) for some in signs]
        exact = sum(abs(one) >= sum(pairs) for one in sums) / len(sums)
        assert float(found["p"]) == pytest.approx(exact, abs=0.02)
        alone = [line for line in lines if line["task"] == "sst2"]
        assert "calibrated and plain" not in report(alone)

    def test_the_price_of_a_method_is_known_whatever_machine_it_ran_on(
        self, drawn: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prices: list[dict[str, float]] = []
        monkeypatch.setattr(pictures, "against_cost", lambda costs, *_: prices.append(costs))
        price = {"calibrated": 8 / 3, "quarter-batch": 17 / 12, "plain-longer": 8 / 3}
        chosen = [cell for cell in ALL if cell.study == "finetuning" and cell.task == "sst2"
                  and cell.seed == 1 and cell.method in ("plain", *price)]  # fmt: skip
        lines = [result(cell) for cell in chosen]
        for line in lines:
            line["machine"] = {**line["machine"], "processor": line["method"]}
        report(lines)
        assert prices
        assert all(found == pytest.approx(price, rel=1e-3) for found in prices)

    def test_methods_of_one_task_are_drawn_apart_from_the_mean(
        self, drawn: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prices: list[set[str]] = []
        monkeypatch.setattr(pictures, "against_cost", lambda costs, *_: prices.append(set(costs)))
        everywhere = ("plain", "calibrated", "reference")
        chosen = [cell for cell in ALL if cell.study == "finetuning" and cell.seed == 1
                  and cell.task in ("sst2", "sick-e", "cola")
                  and (cell.method in everywhere
                       or (cell.method, cell.task) == ("quarter-batch", "sst2"))]  # fmt: skip
        text = report([result(cell) for cell in chosen])
        figures = re.findall(r"\]\((finetuning-cost.*?)\)\n", text)
        assert figures == ["finetuning-cost.png", "finetuning-cost-sst2.png"]
        both = {"calibrated", "reference"}
        assert prices == [both] * 3 + [both | {"quarter-batch"}] * 3

    def test_a_model_that_gives_one_answer_is_in_no_picture_of_gains(
        self, drawn: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing can be made to change it, so that it would stand above all others."""
        prices: list[set[str]] = []
        monkeypatch.setattr(pictures, "against_cost", lambda costs, *_: prices.append(set(costs)))
        lines = [
            result(cell)
            for cell in ALL
            if (cell.study, cell.task, cell.seed) == ("methods", "sst2", 1)
            and cell.method in ("plain", "calibrated", "freelb++")
        ]
        assert "Not drawn" not in report(lines)
        next(line for line in lines if line["method"] == "freelb++")["test"]["clean.mcc"] = 0.0
        assert (
            "*Not drawn, since a run of it gives one answer to every example: freelb++.*"
            in report(lines)
        )
        assert prices == [{"calibrated", "freelb++"}] * 3 + [{"calibrated"}] * 3

    def test_a_factor_of_one_value_is_left_out(self, drawn: list[str]) -> None:
        chosen = [cell for cell in in_order("calibrate") if cell.seed == 1 and cell.task == "sst2"
                  and cell.method in ("plain", "alpha: 1", "alpha: 3", "layer: 0")]  # fmt: skip
        text = report([result(cell) for cell in chosen])
        assert "sst2: alpha\n" in text
        assert "sst2: layer\n" not in text

    def test_tasks_where_a_factor_has_one_value_do_not_crowd_out_the_others(
        self, drawn: list[str]
    ) -> None:
        ran = {
            "sst2": ("plain", "layer: 0", "layer: 1"),
            **dict.fromkeys(("sick-e", "cola"), ("plain", "layer: 0")),
        }
        chosen = [cell for cell in in_order("calibrate")
                  if cell.seed == 1 and cell.method in ran.get(cell.task, ())]  # fmt: skip
        assert "Fine-tuning, sst2: layer\n" in report([result(cell) for cell in chosen])

    def test_the_best_recipe_is_marked_by_the_validation_split(self, drawn: list[str]) -> None:
        lines = [
            result(cell, dev={"lr 0.0002, 6 epochs": 90}.get(cell.method, 80))
            for cell in in_order("tune")
        ]
        text = report(lines)
        assert "| **lr 0.0002, 6 epochs** | 4 | 90.0" in text
        assert text.count("**lr") == 1
        # A recipe that was run on the easier task only does not win by that.
        some = [line for line in lines
                if line["task"] == "sst2" or line["method"] != "lr 0.0001, 6 epochs"]  # fmt: skip
        for line in some:
            line["dev"] = {"sst2": 95, "sick-e": 60}[line["task"]]
        assert "**lr 0.0001, 6 epochs**" not in report(some)

    def test_failed_and_outdated_cells_are_named(self, drawn: list[str]) -> None:
        lines = [result(replace(CELL, seed=seed)) for seed in (1, 2)]
        lines[0]["resolved"] = {}
        failed = {**lines[0], "method": "paper", "key": "other", "status": "failed", "error": ""}
        again = {**lines[1], "status": "failed", "error": ""}  # and then it went well
        text = report([failed, again, *lines])
        assert "**Failed:** finetuning/sst2/paper/1." in text
        assert re.search(r"Left out.*other settings.*: finetuning/sst2/calibrated/1\.", text)

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "results.jsonl"
        methods = ("calibrated", "plain", "reference", "dropout-only")
        for cell in in_order("finetuning"):
            if cell.task == "sst2" and cell.method in methods and cell.seed < 3:
                ledger.append(path, result(cell))
        assert analyse.main([str(path), "-o", str(tmp_path / "report")]) == 0
        text = (tmp_path / "report" / "report.md").read_text()
        assert text.strip() == capsys.readouterr().out.strip()
        figures = re.findall(r"\]\((.*?)\)\n", text)
        assert figures == ["finetuning-cost.png", "finetuning-sst2.png"]
        for name in figures:
            image = (tmp_path / "report" / name).read_bytes()
            assert image.startswith(b"\x89PNG")
            assert len(image) > 10_000

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            (None, "results.jsonl does not exist"),
            ("", "results.jsonl has no result of a cell that is done"),
            ('{"status": "failed"}\n{"sta', "results.jsonl has no result of a cell that is done"),
        ],
    )
    def test_no_results(self, text: str | None, error: str, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        if text is not None:
            path.write_text(text)
        ended = run_command(analyse.main, path, "-o", tmp_path / "report")
        assert error in ended.error
        assert not (tmp_path / "report").exists()


class TestPictures:
    def test_share_above(self) -> None:
        found = pictures.share_above([0.0, 0.002, 0.01, None])
        assert found[0] == 75  # at 0.001
        assert found[-1] == 25  # at 0.3
        assert sorted(found, reverse=True) == list(found)

    def test_a_point_a_method_where_it_belongs(self) -> None:
        axis = Figure().subplots()
        gains = {
            name: summary.Difference(summary.Estimate(value, value - 1, value + 1, 3), 0.1)
            for name, value in (("a", 2.0), ("b", -1.0))
        }
        pictures.against_cost({"a": 2.5, "b": 1.5, "c": 9.0}, gains, "x", "points")(axis)
        _, labels = axis.get_legend_handles_labels()
        assert sorted(labels) == ["a", "b", "plain"]
        points = [tuple(c.lines[0].get_xydata()[0]) for c in axis.containers]
        assert points == [(2.5, 2.0), (1.5, -1.0)]

    def test_colours_and_marks_tell_thirty_methods_apart(self) -> None:
        axis = Figure().subplots()
        gain = summary.Difference(summary.Estimate(1.0, math.nan, math.nan, 1), math.nan)
        names = [f"m{n}" for n in range(30)]
        pictures.against_cost(dict.fromkeys(names, 2.0), dict.fromkeys(names, gain), "x", "y")(axis)
        looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in axis.containers}
        assert len(looks) == 30

    def test_curves_are_means_over_seeds_at_the_updates_that_all_have(self) -> None:
        lines = [result(replace(CELL, seed=seed)) for seed in (1, 2)]
        for line, values in zip(lines, ({5: 60, 10: 70}, {5: 62, 10: 76, 15: 80}), strict=True):
            line["curve"] = [
                {"valid_num_updates": n, "valid_accuracy": v} for n, v in values.items()
            ]
        lines[1]["curve"].append({"valid_num_updates": 20})  # not a number, hence not logged
        axis = Figure().subplots()
        methods = {"absent": "no such", "ours": "calibrated"}
        pictures.learning(summary.Results(lines), methods, "sst2", "valid_accuracy")(axis)
        [curve] = axis.get_lines()
        assert curve.get_xydata().tolist() == [[5, 61], [10, 73]]
        assert curve.get_color() == pictures.COLORS[1]

    def test_legends_of_all_panels_are_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def panel(names: str) -> pictures.Panel:
            return lambda axis: [axis.plot([1, 2], label=name) for name in names]

        figure = Figure(layout="constrained")
        monkeypatch.setattr(pictures, "Figure", lambda **_: figure)
        pictures.draw(tmp_path / "a.png", [("one", panel("ab")), ("two", panel("bc"))])
        [legend] = figure.legends
        assert sorted(text.get_text() for text in legend.get_texts()) == ["a", "b", "c"]
        assert not any(axis.get_legend() for axis in figure.axes)


# ------------------------------------------------------------------------------ all of it, for real


@pytest.mark.slow
def test_everything(train: Train, mlm_data: Path, data: Path, tmp_path: Path) -> None:
    """Two methods and a pre-training: trained, measured, interrupted, noted, analysed."""
    encoder = tmp_path / "encoder"
    train("saved", max_update=2, disable_validation=True)
    encoder.mkdir()
    (tmp_path / "saved" / "checkpoint_last.pt").rename(encoder / "model.pt")
    (encoder / "dict.txt").write_text((mlm_data / "dict.txt").read_text())

    plain = replace(CELL, method="plain", options=PLAIN)
    text = Cell("pretraining", cells.TEXT, "scratch ALUM", 1, CALIBRATED, RECIPE)
    after = replace(plain, study="pretraining", method="scratch ALUM", start=text)
    output = tmp_path / "output"
    said = io.StringIO()
    runner = grid.Grid(output, data, encoder, screen=Screen(said), pause=0.2)

    def begin() -> None:
        os.setsid()
        runner.run([CELL, plain])

    process = multiprocessing.get_context("fork").Process(target=begin)
    process.start()
    logs = output / "logs"
    wait_until(lambda: any("begin training" in log.read_text() for log in logs.glob("*.log")), 240)
    process.kill()
    process.join()
    wait_until(lambda: not processes_about(output))
    assert ledger.read(runner.results) == []

    assert runner.run([CELL, plain, after]) == 0, "\n".join(
        log.read_text()[-2000:] for log in logs.glob("*.log")
    )
    lines = {(line["method"], line["task"]): line for line in ledger.read(runner.results)}
    assert len(lines) == 4
    ours, theirs = lines["calibrated", "sst2"], lines["plain", "sst2"]
    for line in (ours, theirs):
        assert line["updates"] == 64 // RECIPE.batch * RECIPE.epochs
        assert len(line["curve"]) == RECIPE.epochs
        assert 0 <= line["dev"] <= 100
        assert {column.key for column in analyse.ROBUSTNESS} <= line["test"].keys()
        assert {len(radii) for radii in line["radii"].values()} == {LITTLE.embeddings}
        assert 0 < line["update_cpu_seconds"] < line["train_cpu_seconds"]
    assert ours["gain"] > 1.5
    assert theirs["gain"] is None
    assert ours["test"] != theirs["test"]
    assert ours["command"][1] == theirs["command"][1]  # the same training sentences
    pretrained = lines["scratch ALUM", "text"]["test"]
    assert 1 < pretrained["ppl"] < pretrained["adv_ppl"]
    assert lines["scratch ALUM", "sst2"]["start"] == "scratch ALUM"
    # No checkpoint is left but that which others may start from.
    assert [path.parent.name for path in output.rglob("*.pt")] == ["models"]

    before = runner.results.read_bytes()
    assert runner.run([CELL, plain, after]) == 0
    assert said.getvalue().count("0 cells to run") == 1
    assert runner.results.read_bytes() == before

    assert analyse.main([str(runner.results), "-o", str(tmp_path / "report")]) == 0
    found = (tmp_path / "report" / "report.md").read_text()
    assert row(found, "SST-2", "calibrated")["FLOPs"] == "2.67"
    assert "### Perplexity" in found
    assert "### Fine-tuned (plainly) on SST-2" in found


# A cell of each kind that the others do not have: what trains it, and what is measured.
KINDS = {
    "questions": replace(CELL, study="tasks", task="policyqa", size=None),
    "tags": replace(CELL, study="tasks", task="wnut17", size=None),
    **{
        study: replace(CELL, study=study, task="ag_news", size=40, options=options)
        for study, options in {
            "methods": cells.METHODS["smart"],
            "less of a method": cells.LESS_OF_IT["freelb++, step 0.01"],
            "price": cells.FRACTIONS["fraction 0.0625"],
            "accuracy": cells.SMALL["epsilon 0.003, alpha 0.1"],
            "site": cells.CHOICES["10 short steps, no cap"],
        }.items()
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell(kind: str, data: Path, vocabulary: Path, tmp_path: Path) -> None:
    cell = KINDS[kind]
    runner = grid.Grid(tmp_path, data, vocabulary, screen=Screen(io.StringIO()), pause=0.2)
    failed = runner.run([cell])
    assert failed == 0, "\n".join(
        log.read_text()[-2000:] for log in (tmp_path / "logs").glob("*.log")
    )
    [line] = ledger.read(runner.results)
    assert ledger.name(line) == cell.name
    assert 0 <= line["test"][line["metric"]] <= 100
    assert {column.key for column in analyse.ROBUSTNESS} <= line["test"].keys()
    assert {len(radii) for radii in line["radii"].values()} == {LITTLE.embeddings}


@pytest.mark.slow
def test_the_real_encoder_gets_a_head_and_is_trained_on(
    data: Path, vocabulary: Path, tmp_path: Path
) -> None:
    head = Cell("encoder", cells.TEXT, "encoder head", 1, PLAIN, RECIPE, head_only=True)
    ours = replace(head, method="encoder ALUM", options=CALIBRATED, head_only=False, start=head)
    runner = grid.Grid(tmp_path, data, vocabulary, screen=Screen(io.StringIO()), pause=0.2)
    failed = runner.run([ours])
    assert failed == 0, "\n".join(
        log.read_text()[-2000:] for log in (tmp_path / "logs").glob("*.log")
    )
    lines = ledger.read(runner.results)
    assert [line["method"] for line in lines] == ["encoder head", "encoder ALUM"]
    files = [tmp_path / "models" / f"{line['key']}.pt" for line in lines]
    given, first, second = (load_state(path)["model"] for path in (vocabulary / "model.pt", *files))
    trained = {name for name in first if name not in given or not first[name].equal(given[name])}
    assert "encoder.lm_head.dense.weight" in trained
    assert all(name.startswith("encoder.lm_head.") for name in trained)
    assert "encoder.lm_head.weight" not in trained  # the embeddings
    layer = "encoder.sentence_encoder.layers.0.fc1.weight"
    assert not second[layer].equal(first[layer])
