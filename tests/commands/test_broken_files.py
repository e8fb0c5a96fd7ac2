"""Mutants of every kind of file give a result or one line; none hangs, or leaves half a file.

``ALUM_MUTANTS=2000 python -m pytest tests/commands/test_broken_files.py -m slow`` reads 2,000
mutants of checkpoints, and 2,000 of everything else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file
from support.fuzzing import CHECKPOINTS, DATA
from support.in_process import run_command
from support.places import ROOT
from support.small_models import make_dictionary, make_model, make_task
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alum_fairseq.convert.command import main as convert
from alum_fairseq.data.subwords import gpt2_encoder
from alum_fairseq.predict.command import main as predict

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MUTANTS = int(os.environ.get("ALUM_MUTANTS", "300"))  # of checkpoints, and of data


@pytest.fixture(scope="module")
def base(cases: dict[str, Any], mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files of every kind."""
    folder = tmp_path_factory.mktemp("broken") / "base"
    folder.mkdir()
    for kind in ("single", "regression", "choices"):
        shutil.copytree(cases[kind].data, folder / kind)
        shutil.copyfile(cases[kind].path, folder / f"{kind}.pt")
    _checkpoints(cases["single"].path, folder)
    text = (mlm_data.parent / "valid").read_text().splitlines()
    lines = [line for line in text if len(line.split()) > 20][:40]
    _tables(lines, folder / "table")
    _vocabularies(lines, cases["single"].data / "vocabulary/dict.txt", folder)
    _of_hugging_face(cases["single"], folder)
    return folder


def _checkpoints(path: Path, folder: Path) -> None:
    """One as fairseq saves it today, and one as it did in 2019."""
    (folder / "new").mkdir()
    shutil.copyfile(path, folder / "new/model.pt")
    (folder / "old").mkdir()
    state = torch.load(path)
    groups = state.pop("cfg")
    args = {**groups["task"], **vars(groups["model"]), "task": "sentence_prediction"}
    del args["_name"]
    state["args"] = Namespace(**{**args, "criterion": "sentence_prediction"})
    torch.save(state, folder / "old/model.pt", _use_new_zipfile_serialization=False)


def _tables(lines: list[str], stem: Path) -> None:
    rows = [{"text": line, "label": "yes" if i % 2 else "no"} for i, line in enumerate(lines)]
    stem.with_suffix(".tsv").write_text(
        "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows)
    )
    stem.with_suffix(".csv").write_text(
        "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
    )
    stem.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _vocabularies(lines: list[str], words: Path, folder: Path) -> None:
    """Words, GPT-2's BPE, sentencepiece and WordPiece, each with a table beside it."""
    for name in ("words", "gpt2", "pieces", "tokenizer"):
        (folder / name).mkdir()
        for kind in ("tsv", "csv", "jsonl"):
            shutil.copyfile(folder / f"table.{kind}", folder / name / f"table.{kind}")
    shutil.copyfile(words, folder / "words/dict.txt")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    numbers = gpt2_encoder(merges)
    (folder / "gpt2/encoder.json").write_text(json.dumps(numbers))
    text = "".join(f"{' '.join(merge)}\n" for merge in merges)
    (folder / "gpt2/vocab.bpe").write_text("#version: 0.2\n" + text)
    (folder / "gpt2/dict.txt").write_text("".join(f"{i} 1\n" for i in numbers.values()))

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "pieces/sentencepiece.bpe"),
        vocab_size=120,
        minloglevel=2,
    )
    (folder / "pieces/sentencepiece.bpe.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "pieces/sentencepiece.bpe.model")
    )
    pieces = [model.id_to_piece(i) for i in range(3, len(model))]
    (folder / "pieces/dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
    known = [token for token in tokenizer.get_vocab() if token not in SPECIAL]
    (folder / "tokenizer/dict.txt").write_text("".join(f"{token} 1\n" for token in known))


def _of_hugging_face(case: Any, folder: Path) -> None:
    command = (convert, "to-hf", case.path, folder / "hf", "--data", case.data)
    assert run_command(*command).status == 0
    shutil.copytree(folder / "hf", folder / "hf_bin")
    (folder / "hf_bin/model.safetensors").unlink()
    torch.save(load_file(folder / "hf/model.safetensors"), folder / "hf_bin/pytorch_model.bin")

    rows = len((folder / "gpt2/dict.txt").read_text().splitlines()) + 5
    model = make_model(make_task(make_dictionary(rows - 5)))
    (folder / "gpt2_model").mkdir()
    args = Namespace(**{**vars(model.args), "arch": "roberta", "task": "masked_lm"})
    torch.save({"args": args, "model": model.state_dict()}, folder / "gpt2_model/model.pt")
    command = (convert, "to-hf", folder / "gpt2_model/model.pt", folder / "hf_gpt2")
    assert run_command(*command, "--vocabulary", folder / "gpt2").status == 0

    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "pieces/sentencepiece.bpe.model")
    )
    config = transformers.XLMRobertaConfig(
        **{"vocab_size": len(pieces) + 2, "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 40},
        type_vocab_size=1,
    )
    transformers.XLMRobertaForMaskedLM(config).save_pretrained(folder / "hf_pieces")
    name = "sentencepiece.bpe.model"
    shutil.copyfile(folder / "pieces" / name, folder / "hf_pieces" / name)


def fuzz(base: Path, targets: Sequence[str], count: int, seed: int) -> list[str]:
    """Read mutants of each target in another process; the lines that it prints."""
    program = ROOT / "tests/support/fuzzing.py"
    done = subprocess.run(
        [sys.executable, program, base, str(count), *targets, "--seed", str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=base,
        env={
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "RAYON_NUM_THREADS": "1"},
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        },
    )
    if done.returncode:
        how = f"killed by signal {-done.returncode}\n" if done.returncode < 0 else ""
        pytest.fail(f"{how}{done.stdout[-6000:]}", pytrace=False)
    return [line for line in done.stdout.splitlines() if re.match(r" *\d+ \d", line)]


def assert_looked_at(lines: list[str], mutants: int) -> None:
    """Results, and errors of several kinds, of all mutants."""
    assert sum(int(line.split()[0]) for line in lines) >= mutants
    assert {line.split()[1] for line in lines} == {"0", "2"}
    assert len(set(lines)) > 10


def test_some_mutants(base: Path) -> None:
    targets = ("checkpoint", "jsonl", "classes", "hugging face", "sentencepiece", "tokenizer")
    assert_looked_at(fuzz(base, targets, count=10, seed=1), 60)


@pytest.mark.parametrize("name", ["init_token", "separator_token"])
@pytest.mark.parametrize("token", [801, -1, 2**70])
def test_symbols_that_there_are_not(
    name: str, token: int, cases: dict[str, Any], tmp_path: Path
) -> None:
    """In a checkpoint of fairseq's own task, which takes any number."""
    state, path = torch.load(cases["single"].path), tmp_path / "model.pt"
    state["cfg"]["task"] |= {"_name": "sentence_prediction", name: token}
    torch.save(state, path)
    files = ("--data", cases["single"].data)
    for command in (
        (predict, "--path", path, *files, "--input", os.devnull),
        (convert, "to-hf", path, tmp_path / "hf", *files),
    ):
        error = run_command(*command).error
        assert error.startswith(f"{path}: its {name} is {token}: it must be the number of a symbol")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight[:-1], "has shape"),
        (lambda weight: weight.flatten()[0], "has shape ()"),
        (lambda weight: weight.repeat(2, *[1] * (weight.dim() - 1)), "has shape"),
        (lambda weight: weight.int(), "is of type torch.int32, not floating"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "encoder.sentence_encoder.layernorm_embedding.bias",
        "encoder.sentence_encoder.layers.1.self_attn.q_proj.weight",
        "encoder.sentence_encoder.layers.1.fc1.weight",
        "encoder.sentence_encoder.layers.0.fc2.bias",
        "classification_heads.sentence_classification_head.dense.weight",
        "classification_heads.sentence_classification_head.out_proj.bias",
    ],
)
def test_weights_that_transformers_would_not_load_are_not_converted(
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    words: str,
    cases: dict[str, Any],
    tmp_path: Path,
) -> None:
    state, path = torch.load(cases["single"].path), tmp_path / "model.pt"
    state["model"][name] = change(state["model"][name])
    torch.save(state, path)
    command = (convert, "to-hf", path, tmp_path / "hf", "--data", cases["single"].data)
    assert f"{path}: {name} {words}" in run_command(*command).error
    assert not (tmp_path / "hf").exists()


def test_an_option_of_old_that_fairseq_does_not_know_is_said_once(
    cases: dict[str, Any], tmp_path: Path
) -> None:
    """fairseq would log all others beside it."""
    _checkpoints(cases["single"].path, tmp_path)
    path = tmp_path / "old/model.pt"
    state = torch.load(path)
    state["args"].log_format = "shouted"
    torch.save(state, path)
    command = (predict, "--path", path, "--data", cases["single"].data, "--input", os.devnull)
    assert "Error merging override common.log_format='shouted'" in run_command(*command).error


@pytest.mark.slow
@pytest.mark.parametrize("targets", [CHECKPOINTS, DATA], ids=["checkpoints", "data"])
def test_mutants(targets: Sequence[str], base: Path) -> None:
    count = -(-MUTANTS // len(targets))
    assert_looked_at(fuzz(base, targets, count, seed=2), MUTANTS)
