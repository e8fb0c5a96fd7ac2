"""``train.sh``: the whole ``fairseq-train`` command for prepared data and a model."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import fairseq

from alum_fairseq import threads
from alum_fairseq.checkpoints.architecture import architecture_options, command_line
from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.checkpoints.fit import encoder_sizes
from alum_fairseq.data.record import RECORD, DataRecord
from alum_fairseq.prepare.plan import TRAIN, VALID
from alum_fairseq.problems import MultipleChoice, SupervisedProblem, TokenProblem

SCRIPT = "train.sh"
_TEMPLATE = """\
#!/usr/bin/env bash
# Fine-tunes {model}
# on {data}. alum-prepare wrote it; it is yours to edit.
#
#   bash {script}          with ALUM, into {data}/alum
#   bash {script} plain    without, into {data}/plain
#
# Further words are options of fairseq-train, and win over those below, for instance
# 'plain --lr 2e-5 --max-epoch 3'. Run again, it goes on where it was.
# On 4 GPUs add: --distributed-world-size 4 {quarter}
set -euo pipefail

# The environment that alum-prepare ran in.
PATH={programs}:"$PATH"

data={folder}
[ -f "$data/{record}" ] || {{
    echo "train.sh: $data holds no {record}: if the data were moved, run alum-prepare again" >&2
    exit 2
}}

case "${{1:-}}" in
    plain) method=({plain}) ;; # fairseq's own training, to the bit
    alum | '' | -*) method=({alum}) ;;
    *) echo "train.sh: the first word is $1: it must be alum, plain or an option" >&2; exit 2 ;;
esac
case "${{1:-}}" in alum | plain) shift ;; esac

# Half precision on a GPU; on a CPU as many threads as cores are idle.
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    machine=(--fp16)
else
    machine=(--cpu)
    [ -n "${{OMP_NUM_THREADS:-}}" ] || OMP_NUM_THREADS="$(python {threads})"
    export OMP_NUM_THREADS
    echo "train.sh: threads: $OMP_NUM_THREADS (set OMP_NUM_THREADS for another number)" >&2
fi

exec {command}
"""


@dataclass(frozen=True)
class _Recipe:
    """How a data set is trained on.

    Attributes:
        lr: the peak learning rate.
        sequences: per update.
        updates: in all, at most 10 epochs.
        warmup: updates in which the learning rate rises.
        metric: what the best checkpoint is chosen by.
        decay: of the weights.
    """

    lr: str
    sequences: int
    updates: int
    warmup: int
    metric: str
    decay: str = "0.1"


_EPOCHS = 10
_LOG_INTERVAL = 100  # fairseq's
# A pass of more sequences than fit into so many tokens, padding included, is split.
_TOKENS = 4400
# fairseq's examples/roberta/README.glue.md, within the ranges of Liu et al. 2019 (RoBERTa), table
# 10, for base and large alike; but the metric is GLUE's. For MRPC, RTE and STS-B the authors start
# from their model for MNLI. As published, a pass with long sequences has fewer of them.
_GLUE = {
    "CoLA": _Recipe("1e-5", 16, 5_336, 320, "mcc"),
    "SST-2": _Recipe("1e-5", 32, 20_935, 1_256, "accuracy"),
    "MRPC": _Recipe("1e-5", 16, 2_296, 137, "acc_and_f1"),
    "QQP": _Recipe("1e-5", 32, 113_272, 28_318, "acc_and_f1"),
    "STS-B": _Recipe("2e-5", 16, 3_598, 214, "pearson_and_spearman"),
    "MNLI": _Recipe("1e-5", 32, 123_873, 7_432, "accuracy"),
    "QNLI": _Recipe("1e-5", 32, 33_112, 1_986, "accuracy"),
    "RTE": _Recipe("2e-5", 16, 2_036, 122, "accuracy"),
}
_PUBLISHED = _GLUE | {
    # Liu et al. 2019, table 10: 2 epochs of 48 inputs, 4 of 16 questions.
    "SQuAD1.1": _Recipe("1.5e-5", 48, 3_690, 221, "f1", "0.01"),
    "SQuAD2.0": _Recipe("1.5e-5", 48, 5_500, 330, "f1", "0.01"),
    "RACE": _Recipe("1e-5", 16, 21_968, 1_318, "accuracy"),
    # fairseq's examples/roberta/commonsense_qa/README.md.
    "CommonsenseQA": _Recipe("1e-5", 16, 3_000, 150, "accuracy", "0.01"),
}


def _recipe(record: DataRecord, width: int) -> _Recipe:
    """The published one, or that of MNLI for the size of these data.

    Encoders narrower than RoBERTa's base model need a higher learning rate: compact BERTs are
    fine-tuned with up to 3e-4 (Turc et al. 2019, arXiv 1908.08962). For spans and tags the base
    model has 3e-5 (Devlin et al. 2019, arXiv 1810.04805, appendix A.3: 2e-5 to 5e-5).
    """
    digit = 3 if isinstance(record.problem, TokenProblem) else 1
    recipe = _PUBLISHED.get(str(record.task))
    if recipe is None:
        sequences = 32
        updates = _EPOCHS * -(-record.splits[TRAIN].rows // sequences)
        metric = "accuracy" if record.problem.categorical else "pearson_and_spearman"
        if isinstance(record.problem, TokenProblem):
            metric = record.problem.metric
        recipe = _Recipe(f"{digit}e-5", sequences, updates, round(0.06 * updates), metric)
    return recipe if width >= 768 else replace(recipe, lr=f"{digit}e-4")


def train_script(record: DataRecord, data: Path, model: Checkpoint) -> tuple[str, str]:
    """The script, and the command that it runs with ALUM.

    Args:
        record: of the data.
        data: their folder.
        model: the checkpoint to start from.

    Raises:
        UsageError: the checkpoint is no RoBERTa.
    """
    folder = str(data.absolute())
    architecture = architecture_options(model.options, model.weights, model.path)
    positions = architecture.pop("max_positions")
    options = record.train_options(positions, model.settings.get("separator_token", 2))
    recipe = _recipe(record, encoder_sizes(model.weights, model.path)["encoder_embed_dim"])
    length = 0 if record.task in _GLUE else record.splits[TRAIN].length
    task = f"alum_{_task(record.problem)}"
    methods = {
        "alum": ["--alum-preset", "calibrated", "--save-dir", f"{folder}/alum"],
        "plain": ["--alum-alpha", "0", "--save-dir", f"{folder}/plain"],
    }
    lines = [
        ["fairseq-train", folder],
        ["--user-dir", _user_dir(), "--task", task, "--criterion", task],
        options,
        ["--finetune-from-model", str(model.path.absolute())],
        command_line(architecture),
        *_schedule(recipe),
        [*_batches(recipe.sequences, length), "--max-tokens", str(max(_TOKENS, positions))],
        _validation(record, recipe.metric),
        ["--no-epoch-checkpoints"],
    ]
    written = [shlex.join(line) for line in lines]
    script = _TEMPLATE.format(
        model=model.path.absolute(),
        data=folder,
        folder=shlex.quote(folder),
        record=RECORD,
        script=shlex.quote(f"{folder}/{SCRIPT}"),
        programs=shlex.quote(str(Path(sys.executable).parent)),
        threads=shlex.quote(threads.__file__),
        quarter=shlex.join(_batches(recipe.sequences // 4, length)),
        command=" \\\n    ".join([*written, '"${method[@]}" "${machine[@]}" "$@"']),
        **{method: shlex.join(words) for method, words in methods.items()},
    )
    return script, " \\\n    ".join([*written, shlex.join(methods["alum"])])


def _task(problem: SupervisedProblem) -> str:
    if isinstance(problem, TokenProblem):
        return problem.name
    return f"sentence_{'ranking' if isinstance(problem, MultipleChoice) else 'prediction'}"


def _user_dir() -> str:
    """The plugin as fairseq finds it from any folder: by its name if it lies beside fairseq."""
    folder = Path(__file__).parents[1]
    return folder.name if folder.parent == Path(fairseq.__file__).parents[1] else str(folder)


def _schedule(recipe: _Recipe) -> list[list[str]]:
    updates = str(recipe.updates)
    return [
        ["--lr", recipe.lr, "--lr-scheduler", "polynomial_decay"],
        ["--warmup-updates", str(recipe.warmup), "--total-num-update", updates],
        ["--max-update", updates, "--max-epoch", str(_EPOCHS)],
        ["--required-batch-size-multiple", "1"],
        ["--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--adam-eps", "1e-6"],
        ["--weight-decay", recipe.decay, "--clip-norm", "0.0"],
        ["--fp16-init-scale", "4", "--threshold-loss-scale", "1", "--fp16-scale-window", "128"],
        ["--distributed-world-size", "1", "--find-unused-parameters"],
        ["--log-interval", str(min(_LOG_INTERVAL, max(1, recipe.updates // 40)))],
    ]


def _batches(sequences: int, length: int) -> list[str]:
    """Options for updates of so many sequences: passes that have room for them at this length."""
    parts = (number for number in range(1, sequences + 1) if sequences % number == 0)
    passes = next((n for n in parts if sequences // n * length <= _TOKENS), sequences)
    return ["--batch-size", str(sequences // passes), "--update-freq", str(passes)]


def _validation(record: DataRecord, metric: str) -> list[str]:
    if VALID not in record.splits:
        return ["--disable-validation"]
    if metric.startswith("pearson") and record.splits[VALID].rows < 2:
        return []  # one example has no correlation: the loss, which is fairseq's default
    logged = metric == "accuracy" or isinstance(record.problem, TokenProblem)
    reports = [] if logged else [f"--report-{metric.replace('_', '-')}"]
    return [*reports, "--best-checkpoint-metric", metric, "--maximize-best-checkpoint-metric"]
