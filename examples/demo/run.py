"""Plain and ALUM pre-training side by side, on text that is already on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import corpus
import report
import sentencepiece
import vocabulary
from jobs import DemoError, Job, Ledger, Runner, Screen, clock, logged, shown
from options import ROOT, SCALES, parse
from perplexity_attack import PERPLEXITY_ATTACK

from alum_fairseq.robustness.report import wording

HEAD = "which_package"
SEED = 1


class Demo:
    """The steps of the demo, in order. Each one leaves a note when it is done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.scale = SCALES[options.scale]
        given = {"updates": options.updates, "seeds": options.seeds}
        self.scale = dataclasses.replace(
            self.scale, **{name: value for name, value in given.items() if value is not None}
        )
        self.preset: str = options.preset
        self.lanes: int = options.jobs
        self.output: Path = options.output
        self.start_update = self.scale.updates // 2
        self.screen = Screen()
        self.ledger = Ledger(self.output)
        self.runner = Runner(ROOT, self.output, self.ledger, self.screen, self.lanes, threads=1)
        self.worked = False

    def run(self) -> None:
        """Do what is not done yet, and show the results."""
        began = time.monotonic()
        self.screen.say(f"The demo's files: {self.output}")
        self.write_text()
        self.preprocess()
        self.train()
        self.measure_robustness()
        results = self.results()
        report_key = self.ledger.key(results, _digest(Path(report.__file__)))
        if not self.ledger.is_done("report", report_key):
            vocabulary.write_aside(
                self.output / "results.json", (json.dumps(results, indent=2) + "\n").encode()
            )
            report.draw(results, self.output / "demo.png")
            self.ledger.finish("report", report_key)
        if self.worked:
            self.screen.say(f"\nAll done in {clock(time.monotonic() - began)} min. The result:\n")
        else:
            self.screen.say("Everything is done already. The result:\n")
        self.screen.say(report.table(results) + "\n\n" + report.finetuning_table(results) + "\n")
        self.screen.say(report.explanation(results))
        self.screen.say("\n" + self.robustness())
        self.screen.say("\n" + self.next_steps())

    # ---------------------------------------------------------------------------------- the text

    def write_text(self) -> None:
        """Harvest the docstrings; write the corpus, the tasks and the vocabulary."""
        scale, folder = self.scale, self.output / "text"
        versions = corpus.package_versions() | {
            "sentencepiece": importlib.metadata.version("sentencepiece")
        }
        code = [_digest(Path(module.__file__)) for module in (corpus, vocabulary)]
        sizes = (scale.megabytes, scale.vocabulary, scale.valid_tokens, scale.test_tokens)
        self.text_key = self.ledger.key(
            versions, code, sizes, scale.examples, scale.test_examples, SEED
        )
        if self.ledger.is_done("text", self.text_key):
            return
        self.worked = True
        self.ledger.begin("text", self.text_key)
        shutil.rmtree(folder, ignore_errors=True)
        self.screen.say(
            "\nreading the docstrings of " + ", ".join(corpus.installed_packages()) + " ..."
        )
        began = time.monotonic()

        def reading(done: int, total: int) -> None:
            left = (time.monotonic() - began) / done * (total - done)
            self.screen.progress(f"{done}/{total} files, {clock(left)} left")

        found = corpus.harvest(scale.megabytes, workers=self.lanes, on_progress=reading)
        found = corpus.deduplicate(found)
        texts = {split: corpus.documents(found, split) for split in corpus.SPLITS}
        letters = sum(len(text) for split in texts.values() for file in split for text in file)
        self.screen.say(
            f"  done: {letters / 1e6:.1f} million letters of prose, without code and repetitions, "
            f"from {sum(map(len, texts.values())):,} files"
        )
        if letters < 20_000:
            raise DemoError("too little text was found: is this Python's library without sources?")

        self.screen.say("\ntraining a sentencepiece vocabulary ...")
        model = folder / "sentencepiece.bpe.model"  # where alum-predict looks for it
        vocabulary.train_vocabulary(
            [text for file in texts["train"] for text in file], scale.vocabulary, model
        )
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model))
        facts = self._write_corpus(texts, tokenizer)
        facts |= self._write_tasks(found, tokenizer)
        self.screen.say(
            f"  done: {tokenizer.get_piece_size():,} pieces; {facts['train_tokens']:,} tokens to "
            f"train on; {facts['train_examples']:,} paragraphs of {len(facts['classes'])} packages "
            "to classify"
        )
        self.ledger.finish("text", self.text_key, **facts)

    def _write_corpus(
        self, texts: dict[str, list[list[str]]], tokenizer: sentencepiece.SentencePieceProcessor
    ) -> dict[str, Any]:
        """Write ``corpus/SPLIT.txt`` (documents separated by blank lines) and ``dict.txt``."""
        most = {"valid": self.scale.valid_tokens, "test": self.scale.test_tokens}
        facts: dict[str, Any] = {}
        for split, files in texts.items():
            lines: list[str] = []
            counts: Counter[str] = Counter()
            for file in files:
                for line in vocabulary.encode(tokenizer, file):
                    lines.append(line)
                    counts.update(line.split())
                lines.append("")
                if counts.total() >= most.get(split, math.inf):
                    break
            path = self.output / "text" / "corpus" / f"{split}.txt"
            vocabulary.write_aside(path, "\n".join([*lines, ""]).encode())
            facts[f"{split}_tokens"] = counts.total()
            if split == "train":
                dictionary = self.output / "text" / "dict.txt"
                vocabulary.write_dictionary(tokenizer, counts, dictionary)
                shares = [count / counts.total() for count in counts.values()]
                facts["unigram_perplexity"] = math.exp(-sum(p * math.log(p) for p in shares))
        return facts

    def _write_tasks(
        self, found: list[corpus.Docstring], tokenizer: sentencepiece.SentencePieceProcessor
    ) -> dict[str, Any]:
        """Write the two tasks in fairseq's layout: ``TASK/input0/SPLIT.txt``, ``.../label/...``."""
        scale = self.scale
        per_class = {
            "train": scale.examples,
            "valid": scale.test_examples,
            "test": scale.test_examples,
        }
        tasks = {
            "packages": corpus.classification(found, per_class),
            "pairs": corpus.sentence_pairs(
                found, {split: 8 * count for split, count in per_class.items()}
            ),
        }
        for task, examples in tasks.items():
            for split, chosen in examples.items():
                folder = self.output / "text" / task
                for number in range(len(chosen[0].texts)):
                    # Longer ones are cut: the models have room for so many tokens only.
                    room = self._positions // len(chosen[0].texts) - 3
                    lines = [
                        " ".join(line.split()[:room])
                        for line in vocabulary.encode(
                            tokenizer, [example.texts[number] for example in chosen]
                        )
                    ]
                    path = folder / f"input{number}" / f"{split}.txt"
                    vocabulary.write_aside(path, "\n".join([*lines, ""]).encode())
                labels = "".join(f"{example.label}\n" for example in chosen)
                vocabulary.write_aside(folder / "label" / f"{split}.txt", labels.encode())
        packages = tasks["packages"]
        frequencies = Counter(example.label for example in packages["test"])
        return {
            "classes": sorted(frequencies),
            "chance": 100 * max(frequencies.values()) / frequencies.total(),
            "train_examples": len(packages["train"]),
            "test_examples": len(packages["test"]),
            "tasks": {task: _parts(chosen) for task, chosen in tasks.items()},
        }

    # ------------------------------------------------------------------------------ fairseq's tools

    @property
    def _positions(self) -> int:
        """How many tokens the models have room for."""
        return 2 * self.scale.tokens

    def preprocess(self) -> None:
        """Binarise the texts with ``fairseq-preprocess``."""
        text, data = self.output / "text", self.output / "data"
        parts = {"corpus": (text / "corpus", data / "corpus", True)}
        for task, names in self.ledger.facts("text")["tasks"].items():
            for name in names:
                parts[f"{task}-{name}"] = (text / task / name, data / task / name, name != "label")
        jobs = []
        for name, (source, target, is_text) in parts.items():
            command = ["fairseq-preprocess", "--only-source"]
            for split in corpus.SPLITS:
                command += [f"--{split}pref", str(source / f"{split}.txt")]
            command += ["--srcdict", str(text / "dict.txt")] if is_text else []
            command += ["--destdir", str(target), "--workers", "1"]
            jobs.append(
                Job(
                    f"preprocess-{name}", f"preprocessing {name}", tuple(command), folder=target,
                    depends=(self.text_key, _version("fairseq")),
                )
            )  # fmt: skip
        self.worked |= self.runner.run(jobs)
        self.data_key = [self.runner.key_of(job.name) for job in jobs]

    def train(self) -> None:
        """Pre-train both models, attack both, fine-tune both in both ways."""
        jobs = []
        for name in (report.ALUM, report.PLAIN):  # the longer one first
            jobs.append(self._pretraining(name))
        for name in (report.PLAIN, report.ALUM):
            jobs.append(self._evaluation(name))
            jobs += [
                self._finetuning(name, way, seed)
                for way in (report.PLAIN, report.ALUM)
                for seed in range(1, self.scale.seeds + 1)
            ]
        self.worked |= self.runner.run(jobs)

    def measure_robustness(self) -> None:
        """The report on the two models that were fine-tuned as they were pre-trained."""
        jobs = []
        checkpoints = []
        for name in (report.PLAIN, report.ALUM):
            for seed in range(1, self.scale.seeds + 1):
                jobs.append(self._finetuning_name(name, name, seed))
                folder = self._finetuning_folder(name, name, seed)
                checkpoints.append(f"{name}={folder / 'checkpoint_best.pt'}")
        folder = self.output / "robustness"
        command = [
            "alum-robustness", "--path", *checkpoints,
            "--data", str(self.output / "data" / "packages"),
            "--vocabulary", str(self.output / "text"), "--subset", "test", "--cpu", "--quick",
            "--parts", "noise", "greedy", "linf", "l2", "smoothness",
            "--examples", str(self.scale.measured), "--attack-examples", str(self.scale.attacked),
            "--output", str(folder),
        ]  # fmt: skip
        job = Job(
            "robustness",
            "measuring how robust the fine-tuned models are",
            tuple(command),
            after=tuple(jobs),
            folder=folder,
            resumes=True,
            depends=self._depends(plugin=True),
        )
        self.worked |= self.runner.run([job])

    def _model(self, name: str) -> Path:
        return self.output / "models" / name.lower()

    def _architecture(self) -> list[str]:
        width = self.scale.width
        return [
            "--arch", "roberta_base", "--encoder-layers", str(self.scale.layers),
            "--encoder-embed-dim", str(width), "--encoder-ffn-embed-dim", str(4 * width),
            "--encoder-attention-heads", str(max(1, width // 32)),
            "--max-positions", str(self._positions),
        ]  # fmt: skip

    def _optimizer(self, updates: int, rate: str) -> list[str]:
        return [
            "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--adam-eps", "1e-6",
            "--weight-decay", "0.01", "--clip-norm", "1.0", "--lr", rate,
            "--lr-scheduler", "polynomial_decay", "--warmup-updates", str(max(1, updates // 10)),
            "--total-num-update", str(updates), "--max-update", str(updates),
        ]  # fmt: skip

    def _pretraining(self, name: str) -> Job:
        """The same command for both, but for the task and the criterion."""
        scale, start = self.scale, self.start_update
        if name == report.PLAIN:
            objective = ["--task", "masked_lm", "--criterion", "masked_lm"]
        else:
            objective = [
                "--task", "alum_masked_lm", "--criterion", "alum_mlm",
                "--alum-preset", self.preset, "--alum-start-update", str(start),
            ]  # fmt: skip
        every = max(1, scale.updates // 10)
        command = [
            "fairseq-train", str(self.output / "data" / "corpus"), "--user-dir", "alum_fairseq",
            *objective, *self._architecture(), *self._optimizer(scale.updates, "2e-3"),
            "--sample-break-mode", "none", "--tokens-per-sample", str(scale.tokens),
            "--batch-size", str(scale.batch), "--batch-size-valid", "32",
            "--dropout", "0.0", "--attention-dropout", "0.0", "--seed", str(SEED), "--cpu",
            "--num-workers", "0", "--log-format", "json", "--log-interval", str(max(1, every // 5)),
            "--save-interval-updates", str(every), "--keep-interval-updates", "1",
            "--no-epoch-checkpoints", "--save-dir", str(self._model(name)),
        ]  # fmt: skip

        def cost(update: int) -> float:
            # An update with the adversary costs about 2.7 plain ones.
            return update + (1.7 * max(0, update - start) if name == report.ALUM else 0.0)

        return Job(
            f"pretraining-{name.lower()}",
            f"pre-training, {name}",
            tuple(command),
            folder=self._model(name),
            updates=scale.updates,
            cost=cost,
            resumes=True,
            depends=self._depends(plugin=name == report.ALUM),
            result=lambda log: f"perplexity {_last(log, 'valid')['valid_ppl']}",
        )

    def _evaluation(self, name: str) -> Job:
        """The same command for both; the criterion in the checkpoint is put aside."""
        overrides = {"criterion": PERPLEXITY_ATTACK}
        double_quoted = str(overrides).replace("'", '"')  # easier to copy to a shell
        command = [
            "fairseq-validate", str(self.output / "data" / "corpus"), "--user-dir", "alum_fairseq",
            "--task", "masked_lm", "--path", str(self._model(name) / "checkpoint_last.pt"),
            "--model-overrides", double_quoted, "--valid-subset", "test", "--batch-size", "32",
            "--cpu", "--num-workers", "0", "--log-format", "json",
        ]  # fmt: skip

        def result(log: Path) -> str:
            stats = _last(log, "test")
            return f"perplexity {stats['test_ppl']} clean, {stats['test_adv_ppl']} under attack"

        return Job(
            f"attack-{name.lower()}",
            f"attacking {name}",
            tuple(command),
            after=(f"pretraining-{name.lower()}",),
            depends=self._depends(plugin=True),
            result=result,
        )

    def _finetuning(self, name: str, way: str, seed: int) -> Job:
        """Fine-tuning from either model, in either way."""
        facts = self.ledger.facts("text")
        batch = 16
        updates = math.ceil(facts["train_examples"] / batch) * self.scale.epochs
        folder = self._finetuning_folder(name, way, seed)
        command = self._finetuning_command("packages", name, way, folder, seed, updates, batch)

        def result(log: Path) -> str:
            stats = _last(log, "test")
            return (
                f"accuracy {stats['test_accuracy']}% clean, {stats['test_adv_accuracy']}% under "
                "attack"
            )

        return Job(
            self._finetuning_name(name, way, seed),
            f"fine-tuning the {name} model, {way}, seed {seed}",
            tuple(command),
            after=(f"pretraining-{name.lower()}",),
            folder=folder,
            updates=updates,
            depends=self._depends(plugin=True),
            result=result,
        )

    def _finetuning_name(self, name: str, way: str, seed: int) -> str:
        return f"finetuning-{name.lower()}-{way.lower()}-{seed}"

    def _finetuning_folder(self, name: str, way: str, seed: int) -> Path:
        return self.output / "models" / f"{name.lower()}-packages-{way.lower()}-{seed}"

    def _finetuning_command(
        self, task: str, name: str, way: str, folder: Path, seed: int, updates: int, batch: int
    ) -> list[str]:
        """The same command for both ways, but for alpha; the same attack in validation."""
        classes = len(self.ledger.facts("text")["classes"]) if task == "packages" else 2
        return [
            "fairseq-train", str(self.output / "data" / task), "--user-dir", "alum_fairseq",
            "--task", "alum_sentence_prediction", "--criterion", "alum_sentence_prediction",
            *(["--alum-alpha", "0"] if way == report.PLAIN else []), "--alum-validate",
            "--num-classes", str(classes),
            "--classification-head-name", HEAD if task == "packages" else task,
            "--init-token", "0", "--separator-token", "2",
            "--restore-file", str(self._model(name) / "checkpoint_last.pt"),
            "--reset-optimizer", "--reset-dataloader", "--reset-meters", "--reset-lr-scheduler",
            *self._architecture(), *self._optimizer(updates, "5e-4"),
            "--batch-size", str(batch), "--batch-size-valid", "32",
            "--required-batch-size-multiple", "1", "--dropout", "0.1", "--attention-dropout", "0.1",
            "--seed", str(seed), "--cpu", "--num-workers", "0", "--valid-subset", "valid,test",
            "--log-format", "json", "--log-interval", str(max(1, updates // 50)),
            "--no-epoch-checkpoints", "--save-dir", str(folder),
        ]  # fmt: skip

    def _depends(self, plugin: bool) -> list[Any]:
        """What the results of the tools depend on besides their options."""
        depends = [self.data_key, _version("fairseq"), _version("torch")]
        return [*depends, *_plugin_digest()] if plugin else depends

    # --------------------------------------------------------------------------------- the results

    def results(self) -> dict[str, Any]:
        """Everything that the table and the picture show, read from the logs."""
        models: dict[str, Any] = {}
        for name in (report.PLAIN, report.ALUM):
            log = self.runner.log_of(f"pretraining-{name.lower()}")
            attack = _last(self.runner.log_of(f"attack-{name.lower()}"), "test")
            # One line per epoch: of the updates alone, whatever validation and saving took.
            seconds = sum(float(stats["train_train_wall"]) for stats in logged(log, "train"))
            models[name] = {
                "perplexity": float(attack["test_ppl"]),
                "perplexity_under_attack": float(attack["test_adv_ppl"]),
                "gain": float(attack["test_adv_gain"]),
                "finetuned": {
                    way: self._finetuned(name, way) for way in (report.PLAIN, report.ALUM)
                },
                "seconds": seconds,
                "curve": [
                    (int(stats["valid_num_updates"]), float(stats["valid_ppl"]))
                    for stats in logged(log, "valid")
                ],
            }
        for one in models.values():
            one["time_ratio"] = (
                one["seconds"] / models[report.PLAIN]["seconds"]
                if models[report.PLAIN]["seconds"] >= 5  # logged in whole seconds
                else None
            )
        facts = {k: v for k, v in self.ledger.facts("text").items() if k not in {"key", "tasks"}}
        return {
            **facts,
            "updates": self.scale.updates,
            "start_update": self.start_update,
            "preset": self.preset,
            "scale": dataclasses.asdict(self.scale),
            "models": models,
        }

    def _finetuned(self, name: str, way: str) -> dict[str, list[float]]:
        """Accuracies of a way of fine-tuning: a number for every seed."""
        logs = [
            self.runner.log_of(self._finetuning_name(name, way, seed))
            for seed in range(1, self.scale.seeds + 1)
        ]
        found = [_last(log, "test") for log in logs]
        return {
            "accuracies": [float(stats["test_accuracy"]) for stats in found],
            "accuracies_under_attack": [float(stats["test_adv_accuracy"]) for stats in found],
        }

    def robustness(self) -> str:
        """The summary of the robustness report."""
        found = json.loads((self.output / "robustness" / "report.json").read_text("utf-8"))
        return f"""\
Robustness of {report.PLAIN} (pre-trained and fine-tuned so) and {report.ALUM}, on the test split:

{wording.table(found)}"""

    def next_steps(self) -> str:
        """Where to go from here."""
        output = self.output
        pairs = self._finetuning_command(
            "pairs", report.ALUM, report.ALUM, output / "models" / "alum-pairs", SEED, 1000, 16
        )
        predict = [
            *("alum-predict", "--path", f"{output}/models/alum-packages-alum-1/checkpoint_best.pt"),
            *("--data", str(output / "data" / "packages"), "--vocabulary", str(output / "text")),
        ]
        return f"""\
The picture: {output / "demo.png"}    The numbers: {output / "results.json"}
The report:  {output / "robustness" / "report.html"}, to be opened in a browser
The models:  {output / "models"}    What the tools printed: {output / "logs"}

What to try next (in the environment: . .venv/bin/activate):
  - Ask a model about a text of your own:
    echo 'The eigenvalues of a symmetric matrix, in ascending order.' |
{shown(predict)}
  - Longer pre-training, more seeds; the numbers above need both:
    bash scripts/demo.sh --updates {10 * self.scale.updates} --seeds 5 --output demo-output-long
  - The paper's numbers to the letter: what does ALUM change when its perturbation is too small?
    bash scripts/demo.sh --preset paper --output demo-output-paper
  - Another task: do two texts belong to one docstring? From the ALUM model:
{shown(pairs)}"""


def _parts(examples: dict[str, list[corpus.Example]]) -> list[str]:
    return [*(f"input{i}" for i in range(len(examples["train"][0].texts))), "label"]


def _last(log: Path, name: str) -> dict[str, Any]:
    """What was logged last under a name.

    Raises:
        DemoError: nothing was.
    """
    found = list(logged(log, name))
    if not found:
        raise DemoError(f"no '{name}' line was logged: see {log}")
    return found[-1]


def _version(package: str) -> str:
    if package == "fairseq":  # known by two names
        spec = importlib.util.find_spec("fairseq")
        version = Path(next(iter(spec.submodule_search_locations))) / "version.txt"
        return version.read_text().strip() if version.exists() else "unknown"
    return importlib.metadata.version(package)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plugin_digest() -> list[str]:
    return [_digest(path) for path in sorted((ROOT / "alum_fairseq").rglob("*.py"))]


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; returns the exit status."""
    options = parse()
    options.output = options.output.absolute()
    os.chdir(ROOT)
    if options.output.is_relative_to(ROOT):  # shorter
        options.output = options.output.relative_to(ROOT)
    signal.signal(signal.SIGTERM, _stop)
    try:
        Demo(options).run()
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; run it again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
