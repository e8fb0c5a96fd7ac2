"""What validation logs is what scikit-learn and SciPy make of the same predictions.

The logits of every validation batch are noted as the model gives them, clean and under attack, and
the log is compared with what the references say of all of them together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from fairseq.models.roberta.model import RobertaClassificationHead, RobertaLMHead
from fairseq.tasks.fairseq_task import FairseqTask
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef
from support.in_process import Trained, fairseq_train, run_command
from support.options import SMALL_MODEL, command_line
from support.places import PLUGIN
from support.untrained import MODEL, texts_of
from torch import Tensor, nn

from alum_fairseq.criterions.alum_mlm import AlumMlm
from alum_fairseq.prepare.command import main as prepare

SIZES = {"train": 16, "train1": 9, "valid": 13, "valid1": 5}  # no multiples of a batch

# A reference: of logits and targets, by the name in the log.
Reference = Callable[[np.ndarray, np.ndarray], float]


def bits(logits: np.ndarray, targets: np.ndarray) -> float:
    return log_loss(targets, softmax(logits), labels=range(logits.shape[1])) / math.log(2)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


def percent(score: Callable[..., float], **options: Any) -> Reference:
    return lambda logits, targets: 100 * score(targets, logits.argmax(1), **options)


def correlation(*kinds: Callable[..., Any]) -> Reference:
    def mean(outputs: np.ndarray, targets: np.ndarray) -> float:
        return 100 * sum(kind(outputs[:, 0], targets)[0] for kind in kinds) / len(kinds)

    return mean


def squared(outputs: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean((outputs[:, 0] - targets) ** 2)) / math.log(2)


def perplexity(logits: np.ndarray, targets: np.ndarray) -> float:
    return 2 ** bits(logits, targets)


def with_f1(positive: int) -> dict[str, Reference]:
    accuracy, f1 = percent(accuracy_score), percent(f1_score, pos_label=positive)
    return {
        "f1": f1,
        "acc_and_f1": lambda *pair: (accuracy(*pair) + f1(*pair)) / 2,
    }


CLASSES = {"loss": bits, "accuracy": percent(accuracy_score)}
MCC = {"mcc": percent(matthews_corrcoef)}
REGRESSION = {
    **{"loss": squared, "pearson": correlation(pearsonr), "spearman": correlation(spearmanr)},
    "pearson_and_spearman": correlation(pearsonr, spearmanr),
}
REPORT_F1 = {"report-mcc": True, "report-acc-and-f1": True}


@dataclass(frozen=True)
class Row:
    """What is validated on, and what the log must say of it.

    Attributes:
        metrics: the references by their names in the log.
        labels: the classes in their order, or numbers of a regression.
        kind: of task.
        options: of fairseq-train.
        reads: the examples that each validation set has.
    """

    metrics: dict[str, Reference]
    labels: tuple[str, ...] = ("no", "yes")
    kind: str = "single"
    options: dict[str, Any] = field(default_factory=dict)
    reads: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"valid": ("valid",)})


SEVERAL = {"valid": ("valid",), "valid1": ("valid1",)}
COMBINED = {"valid": ("valid", "valid1")}
ROWS = {
    "named labels": Row({**CLASSES, **MCC, **with_f1(1)}, options=REPORT_F1, reads=SEVERAL),
    "numbered labels": Row({**CLASSES, **MCC, **with_f1(1)}, ("0", "1"), options=REPORT_F1),
    # As fairseq-preprocess orders them, the most frequent first: class 1 is the label 0.
    "numbers in another order": Row(
        {**CLASSES, **MCC, **with_f1(0)}, ("1", "0"), options=REPORT_F1, reads=COMBINED
    ),
    "numbers, none of them 1": Row({**CLASSES, **with_f1(1)}, ("2", "4"), options=REPORT_F1),
    "labels that are no symbols": Row(
        {**CLASSES, **with_f1(1)}, ("no, never", "yes"), options=REPORT_F1
    ),
    "three named labels": Row(
        {**CLASSES, **MCC}, ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"), options={"report-mcc": True}
    ),
    "three numbered labels": Row({**CLASSES, **MCC}, ("0", "1", "2"), options={"report-mcc": True}),
    "regression": Row(
        REGRESSION,
        ("0.5", "-1", "2.25", "3", "1.5"),
        "regression",
        {"report-pearson-and-spearman": True, "regression-target": True},
        SEVERAL,
    ),
    "regression, combined": Row(
        REGRESSION,
        ("0.5", "-1", "2.25", "3", "1.5"),
        "regression",
        {"report-pearson-and-spearman": True, "regression-target": True},
        COMBINED,
    ),
    "ranking": Row(CLASSES, ("0", "1", "2"), "choices", reads=SEVERAL),
    "ranking, combined": Row(CLASSES, ("0", "1", "2"), "choices", reads=COMBINED),
    "masked words": Row({"loss": bits, "ppl": perplexity}, kind="mlm", reads={"valid": ()}),
}


def make_data(row: Row, mlm_data: Path, folder: Path) -> Path:
    """Tables of every split, and the data that alum-prepare makes of them."""
    texts, vocabulary = texts_of(mlm_data), folder / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "dict.txt").write_text((mlm_data / "dict.txt").read_text())
    for begin, (split, size) in zip((0, 16, 25, 38), SIZES.items(), strict=True):
        lines = []
        for i, words in enumerate(texts[begin : begin + size]):
            line = {"a": " ".join(words[: 3 + i % 11]), "label": row.labels[i % len(row.labels)]}
            line |= {f"c{j}": " ".join(words[15 + j : 18 + 2 * j + i % 3]) for j in range(3)}
            lines.append(json.dumps(line) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    tables = {split: folder / f"{split}.jsonl" for split in SIZES}
    command = ["--columns", "a", "--label", "label", "--vocabulary", vocabulary, "--workers", 1]
    command += {"regression": ["--regression"], "choices": ["--choices", "c0", "c1", "c2"]}.get(
        row.kind, ["--labels", *row.labels]
    )
    command += ["--max-positions", MODEL["max-positions"]]
    both = [*command, "--train", tables["train"], "--valid", tables["valid"], tables["valid1"]]
    assert run_command(prepare, *both, "--output", folder / "data").status == 0
    more = [*command, "--train", tables["train1"], "--output", folder / "more"]
    assert run_command(prepare, *more).status == 0
    for path in (folder / "more").glob("*/train.*"):  # which fairseq adds to train
        path.rename(folder / "data" / path.parent.name / path.name.replace("train", "train1"))
    return folder / "data"


def command_of(row: Row, data: Path, **more: Any) -> list[str]:
    options = {
        **{"user-dir": PLUGIN, "cpu": True, "optimizer": "adam", "lr": 1e-30, "max-update": 1},
        **{"batch-size": 8, "num-workers": 0, "log-format": "json", "no-save": True},
        **{"alum-validate": True, "alum-epsilon": 0.3, "alum-log-gain-interval": 0, "seed": 5},
        **{"valid-subset": ",".join(row.reads), "combine-valid-subsets": row.reads == COMBINED},
    }
    if row.kind == "mlm":
        options |= {"task": "alum_masked_lm", "criterion": "alum_mlm", **SMALL_MODEL}
        return [str(data), *command_line({**options, **row.options, **more})]
    name = "alum_sentence_ranking" if row.kind == "choices" else "alum_sentence_prediction"
    classes = 1 if row.kind == "regression" else len(row.labels)
    options |= {"task": name, "criterion": name, "num-classes": classes, "init-token": 0, **MODEL}
    return [str(data), *command_line({**options, **row.options, **more})]


@dataclass
class Batch:
    """A validation batch: numbers of its examples, their targets, and the logits of every pass."""

    ids: Tensor
    targets: Tensor
    passes: list[Tensor]

    def logits(self, place: int, calls: int) -> Tensor:
        """Those of the first pass (0), or of the last (-1), each of so many calls of the head."""
        chosen = self.passes[:calls] if place == 0 else self.passes[-calls:]
        return torch.cat(chosen, dim=1) if calls > 1 else chosen[0]


@contextmanager
def noted() -> Iterator[list[Batch]]:
    """Inside, validation batches are noted, of a model whose predictions differ."""
    batches: list[Batch] = []
    step, known = FairseqTask.valid_step, set()

    def valid_step(task: Any, sample: Any, model: nn.Module, criterion: Any) -> Any:
        with torch.no_grad():
            for parameter in () if model in known else model.parameters():
                parameter.mul_(5)
        known.add(model)
        targets = sample["target"]
        if isinstance(criterion, AlumMlm):
            targets = targets[targets != criterion.padding_idx]
        batches.append(Batch(sample["id"], targets.flatten(), []))
        return step(task, sample, model, criterion)

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(module, RobertaClassificationHead | RobertaLMHead) and not module.training:
            batches[-1].passes.append(output.detach().flatten(0, -2))

    hook = nn.modules.module.register_module_forward_hook(note)
    with mock.patch.object(FairseqTask, "valid_step", valid_step):
        yield batches
    hook.remove()


def logged(trained: Trained, split: str) -> dict[str, Any]:
    lines = [line for line in trained.log.splitlines() if line.startswith('{"epoch"')]
    [line] = [line for line in map(json.loads, lines) if f"{split}_loss" in line]
    return {name.removeprefix(f"{split}_"): value for name, value in line.items()}


@pytest.mark.parametrize("name", ROWS)
def test_the_log_says_what_the_references_say(name: str, mlm_data: Path, tmp_path: Path) -> None:
    row = ROWS[name]
    data = mlm_data if row.kind == "mlm" else make_data(row, mlm_data, tmp_path)
    with ExitStack() as stack:
        batches = stack.enter_context(noted())
        trained = fairseq_train(*command_of(row, data, **{"save-dir": tmp_path / "save"}))
    assert trained.error is None
    if row.kind != "mlm":
        assert "Loaded train with #samples: 25" in trained.log
        assert "is 8: 1 of 25 training examples are in no batch, in any epoch" in trained.log
    for split, parts in row.reads.items():
        examples = sum(SIZES[part] for part in parts) or math.inf
        read, targets = [], 0
        while batches and targets < examples:
            targets += len(batches[0].targets)
            read.append(batches.pop(0))
        targets = torch.cat([batch.targets for batch in read]).double().numpy()
        if parts:  # each label stands beside its example, of all parts one after the other
            labels = [row.labels[i % len(row.labels)] for part in parts for i in range(SIZES[part])]
            number = float if row.kind == "regression" else row.labels.index
            ids = torch.cat([batch.ids for batch in read])
            assert sorted(ids.tolist()) == list(range(len(labels)))
            assert targets.tolist() == [number(labels[i]) for i in ids]
        calls, found = 3 if row.kind == "choices" else 1, logged(trained, split)
        for place, prefix in ((0, ""), (-1, "adv_")):
            logits = torch.cat([batch.logits(place, calls) for batch in read]).double().numpy()
            assert logits.shape[1] == 1 or len(read) == 1 or len(set(logits.argmax(1))) > 1
            for metric, reference in row.metrics.items():
                key = "adv_task_loss" if prefix + metric == "adv_loss" else prefix + metric
                expected = reference(logits, targets)
                # fairseq rounds losses to 3 places, perplexity to 2, percentages to 1.
                error = {"loss": 6e-4, "ppl": 0.01 + 5e-4 * expected}.get(metric, 0.0501)
                assert float(found[key]) == pytest.approx(expected, abs=error), (split, key)
