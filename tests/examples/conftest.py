"""What the tests of recipes share: small data, and a fairseq-train that says its options."""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from support.places import ROOT
from support.recipes import TINY, make_stand_in, run_script
from support.small_models import make_model, make_task

from alum_fairseq.prepare.command import main as prepare


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fairseq-train that prints its arguments."""
    return make_stand_in(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session")
def mrpc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """MRPC's files, made of the Python manual, prepared; and a pre-trained model."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("mrpc")
    words = re.findall(r"[a-z]+", " ".join(topics[name] for name in sorted(topics)).lower())
    for name, start in {"train": 0, "dev": 4000}.items():
        rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for i in range(40):  # halves that overlap are a paraphrase
            first = start + 50 * i
            second = first + (6 if i % 2 else 20_000)
            texts = (" ".join(words[at : at + 12]) for at in (first, second))
            rows.append("\t".join([str(i % 2), str(i), str(i), *texts]))
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    (folder / "vocabulary").mkdir()
    dictionary = Dictionary()
    for word, count in Counter(words).most_common(500):
        dictionary.add_symbol(word, n=count)
    dictionary.save(str(folder / "vocabulary" / "dict.txt"))
    dictionary.add_symbol("<mask>")
    model = make_model(make_task(dictionary), **TINY)
    state = {"args": Namespace(arch="roberta", **TINY), "model": model.state_dict()}
    state |= {"optimizer_history": [{"lr_scheduler_state": {}}], "extra_state": {"epoch": 0}}
    torch.save(state, folder / "model.pt")
    arguments = ["--task", "mrpc", "--input", folder, "--vocabulary", folder / "vocabulary"]
    arguments += ["--model", folder / "model.pt", "--output", folder / "data", "--workers", 1]
    assert prepare([str(word) for word in arguments]) == 0
    return folder / "data", folder / "model.pt"


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python manual's topics, a sentence a line: English, on every machine."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("text")
    lines = []
    for name in sorted(topics):
        prose = re.sub(r"\s+", " ", topics[name])
        lines += [line[:300] for line in re.split(r"(?<=\.) ", prose) if line] + [""]
    (folder / "train.txt").write_text("\n".join(lines[:1500]) + "\n", encoding="utf-8")
    (folder / "valid.txt").write_text("\n".join(lines[1500:1560]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sp_data(text: Path) -> Path:
    recipe = ROOT / "examples/pretraining/prepare_sentencepiece.sh"
    run_script(recipe, text / "train.txt", text / "valid.txt", text / "data", 500)
    return text / "data"
