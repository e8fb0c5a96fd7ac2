"""Checkpoints in the form in which RoBERTa was released in 2019, and what is wrong with others.

The archives cannot be had on every machine, so files of exactly that form are written here: torch's
format from before it was a zip archive, an ``argparse.Namespace``, ``decoder.*`` and
``emb_layer_norm`` as names, single or half precision.
"""

from __future__ import annotations

import math
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.roberta import RobertaModel
from support.options import SMALL_MODEL, command_line
from support.places import PLUGIN, ROOT
from support.tools import Train
from torch import Tensor

from alum_fairseq import UsageError
from alum_fairseq.checkpoints.model import load_model
from alum_fairseq.checkpoints.reading import load_state

GPT2_BPE = ROOT.parent / "shared/data/gpt2_bpe"
SHAPES = {
    "roberta_base": {"layers": 12, "embed_dim": 768, "ffn_embed_dim": 3072, "heads": 12},
    "roberta_large": {"layers": 24, "embed_dim": 1024, "ffn_embed_dim": 4096, "heads": 16},
    "roberta": {"layers": 2, "embed_dim": 32, "ffn_embed_dim": 64, "heads": 4},
}
SYMBOLS = 50_260  # of dict.txt; with 4 special ones and <mask>, 50,265


def released_weights(arch: str, vocabulary: int, positions: int) -> dict[str, Tensor]:
    """Random weights under the names of 2019; small enough numbers for half precision."""
    shape = SHAPES[arch]
    width, inner = shape["embed_dim"], shape["ffn_embed_dim"]
    generator = torch.Generator().manual_seed(1)

    def random(*size: int) -> Tensor:
        return torch.empty(size).uniform_(-0.05, 0.05, generator=generator)

    encoder = "decoder.sentence_encoder."
    weights = {f"{encoder}embed_tokens.weight": random(vocabulary, width)}
    weights[f"{encoder}embed_positions.weight"] = random(positions + 2, width)

    def linear(name: str, outputs: int, inputs: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = (
            random(outputs, inputs),
            random(outputs),
        )

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), random(width)

    for i in range(shape["layers"]):
        layer = f"{encoder}layers.{i}."
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{layer}self_attn.{projection}", width, width)
        norm(f"{layer}self_attn_layer_norm")
        linear(f"{layer}fc1", inner, width)
        linear(f"{layer}fc2", width, inner)
        norm(f"{layer}final_layer_norm")
    norm(f"{encoder}emb_layer_norm")
    linear("decoder.lm_head.dense", width, width)
    norm("decoder.lm_head.layer_norm")
    weights["decoder.lm_head.weight"] = weights[f"{encoder}embed_tokens.weight"]
    weights["decoder.lm_head.bias"] = random(vocabulary)
    return weights


def save_released(
    path: Path,
    arch: str = "roberta",
    vocabulary: int = SYMBOLS + 5,
    positions: int = 512,
    half: bool = False,
    zipped: bool = False,
) -> dict[str, Tensor]:
    """Write a checkpoint as it was released; returns its weights."""
    weights = released_weights(arch, vocabulary, positions)
    if half:
        weights = {name: weight.half() for name, weight in weights.items()}
    shape = {f"encoder_{key}": value for key, value in SHAPES[arch].items()}
    shape["encoder_attention_heads"] = shape.pop("encoder_heads")
    args = Namespace(
        **{"arch": arch, "task": "masked_lm", "criterion": "masked_lm", **shape},
        **{"max_positions": positions, "tokens_per_sample": positions, "data": "/released/from"},
        **{"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "seed": 1},
        **{"activation_fn": "gelu", "pooler_activation_fn": "tanh", "pooler_dropout": 0.0},
        **{"sample_break_mode": "complete", "mask_prob": 0.15, "leave_unmasked_prob": 0.1},
        **{"random_token_prob": 0.1, "freq_weighted_replacement": False, "mask_whole_words": False},
        **{"optimizer": "adam", "lr_scheduler": "polynomial_decay", "fp16": True, "cpu": False},
        **{"max_update": 500_000, "lr": [0.0006], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-06},
    )
    history = {
        **{"criterion_name": "MaskedLmLoss", "optimizer_name": "MemoryEfficientFP16Optimizer"},
        **{"lr_scheduler_state": {"best": None}, "num_updates": 500_000},
    }
    state = {
        **{"args": args, "model": weights, "optimizer_history": [history]},
        "extra_state": {"train_iterator": {"epoch": 11, "iterations_in_epoch": 7}, "val_loss": 1.0},
    }
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return weights


def todays_name(name: str) -> str:
    return name.replace("decoder.", "encoder.", 1).replace("emb_layer_norm", "layernorm_embedding")


def assert_loaded(model: Any, weights: dict[str, Tensor]) -> None:
    found = model.state_dict()
    for name, weight in weights.items():
        assert torch.equal(found[todays_name(name)], weight.float()), name


def write_dictionary(folder: Path) -> None:
    """The dictionary of the released models where it is at hand, else one of its size."""
    if GPT2_BPE.is_dir():
        text = (GPT2_BPE / "dict.txt").read_text()
    else:
        text = "".join(f"{i} 1\n" for i in range(SYMBOLS))
    (folder / "dict.txt").write_text(text)


def bpe_options() -> dict[str, Any]:
    if not GPT2_BPE.is_dir():
        return {"bpe": None}
    files = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
    return {"bpe": "gpt2"} | {key: str(GPT2_BPE / name) for key, name in files.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sentences and their labels, in the released models' vocabulary, binarised."""
    from fairseq.data import Dictionary, indexed_dataset

    folder = tmp_path_factory.mktemp("data")
    for name in ("input0", "label"):
        (folder / name).mkdir(parents=True)
    write_dictionary(folder / "input0")
    (folder / "label/dict.txt").write_text("0 1\n1 1\n")
    for name, lines in {"input0": ["31414 232 328", "262 11 287"], "label": ["0", "1"]}.items():
        dictionary = Dictionary.load(str(folder / name / "dict.txt"))
        for split in ("train", "valid"):
            prefix = str(folder / name / split)
            builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", len(dictionary))
            for line in lines:
                builder.add_item(dictionary.encode_line(line, add_if_not_exist=False))
            builder.finalize(f"{prefix}.idx")
    return folder


FINETUNING = {
    **{"task": "alum_sentence_prediction", "criterion": "alum_sentence_prediction"},
    **{"num_classes": 2, "init_token": 0, "separator_token": 2, "max_positions": 512},
    **{"sample_break_mode": None, "tokens_per_sample": None, "max_update": 1},
    **{"required_batch_size_multiple": 1, "validate_interval": 9},
}
RESETS = {"reset_optimizer": True, "reset_dataloader": True, "reset_meters": True}
NO_SHAPE = dict.fromkeys(
    f"encoder_{name}" for name in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
)


# Loading


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize(
    "arch", ["roberta_base", pytest.param("roberta_large", marks=pytest.mark.slow)]
)
def test_from_pretrained(arch: str, half: bool, tmp_path: Path) -> None:
    weights = save_released(tmp_path / "model.pt", arch, half=half)
    write_dictionary(tmp_path)
    roberta = RobertaModel.from_pretrained(str(tmp_path), **bpe_options())
    assert_loaded(roberta.model, weights)
    assert len(roberta.task.source_dictionary) == 50_265
    if GPT2_BPE.is_dir():
        tokens = roberta.encode("Hello world")
        assert tokens.tolist() == [0, 31414, 232, 2]  # fairseq's documentation
        assert roberta.decode(tokens) == "Hello world"
    ours, _ = load_model(
        load_state(tmp_path / "model.pt"), tmp_path / "model.pt", data=str(tmp_path)
    )
    assert_loaded(ours, weights)


@pytest.mark.parametrize(
    ("arch", "half", "way"),
    [
        pytest.param("roberta_base", True, "restore_file", marks=pytest.mark.slow),
        pytest.param("roberta_base", False, "finetune_from_model", marks=pytest.mark.slow),
        pytest.param("roberta_large", True, "restore_file", marks=pytest.mark.slow),
    ],
)
def test_fine_tuning(
    arch: str, half: bool, way: str, train: Train, data: Path, tmp_path: Path
) -> None:
    """The real shapes, through an update."""
    save_released(tmp_path / "model.pt", arch, half=half)
    start = {way: tmp_path / "model.pt", **(RESETS if way == "restore_file" else {})}
    output = train("out", data=data, **{**FINETUNING, **NO_SHAPE, **start}, arch=arch, no_save=True)
    loaded = f"Loaded checkpoint {tmp_path}/model.pt"
    assert loaded in output.stdout
    assert re.search(r'"adv_loss": "[\d.]+', output.stdout)


def test_training_starts_from_the_weights_and_resumes(
    train: Train, data: Path, tmp_path: Path
) -> None:
    weights = save_released(tmp_path / "model.pt", half=True)
    start = {"restore_file": tmp_path / "model.pt", **RESETS}
    train("out", data=data, **FINETUNING, **start, lr=0)
    saved = torch.load(tmp_path / "out/checkpoint_last.pt")
    for name, weight in weights.items():
        assert torch.equal(saved["model"][todays_name(name)], weight.float()), name
    again = train("out", data=data, **{**FINETUNING, "max_update": 3}).stdout
    assert "Loaded checkpoint out/checkpoint_last.pt" in again
    resumed = torch.load(tmp_path / "out/checkpoint_last.pt")
    assert resumed["optimizer_history"][-1]["num_updates"] == 3


# What does not fit, in one line


def configuration(data: Path, **wrong: Any) -> Any:
    chosen = {
        "user-dir": PLUGIN,
        **SMALL_MODEL,
        "arch": "roberta",
        "optimizer": "adam",
        **{name.replace("_", "-"): value for name, value in {**FINETUNING, **wrong}.items()},
    }
    args = options.parse_args_and_arch(
        options.get_training_parser(), [str(data), *command_line(chosen)]
    )
    return convert_namespace_to_omegaconf(args)


def begin(data: Path, **wrong: Any) -> None:
    """What fairseq-train does before it trains."""
    cfg = configuration(data, **wrong)
    task = tasks.setup_task(cfg.task)
    task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: math.floor(share * len(content))])


def without(path: Path, name: str) -> None:
    state = torch.load(path)
    del state["model"][name]
    torch.save(state, path)


def with_options(path: Path, **options: Any) -> None:
    state = torch.load(path)
    vars(state["args"]).update(options)
    torch.save(state, path)


def stripped(path: Path) -> None:
    torch.save({key: torch.load(path)[key] for key in ("args", "model")}, path)


WRONG = [
    ({"vocabulary": 30_000}, {}, "a vocabulary of 30,000 symbols, the data one of 50,265 "),
    ({"vocabulary": 50_264}, {}, r"50,264 symbols \(one less: it has no <mask>\), the data one of"),
    (
        {},
        {"encoder_layers": 3},
        "has 2 layers, not 3: choose its --arch, or --enc",
    ),
    ({}, {"max_positions": 100}, "has 512 positions, not 100: give --max-positions 512"),
    ({}, {"encoder_embed_dim": 64}, "a width of 32, not 64: .* --encoder-embed-dim 32"),
    (
        {},
        {"encoder_ffn_embed_dim": 96},
        "an inner width of 64, not 96: .* --encoder-ffn-embed",
    ),
    (
        {},
        {"encoder_layers": 3, "max_positions": 100, "encoder_attention_heads": 8},
        "it has 2 layers, not 3; 512 positions, not 100; 4 attention heads, not 8: choose its "
        "--arch, or --encoder-layers 2 --max-positions 512 --encoder-attention-heads 4$",
    ),
    (
        {"then": lambda path: with_options(path, alum_layer_norm_eps=1e-12)},
        {},
        "a layer-normalisation epsilon of 1e-12, not 1e-05: give --arch alum_roberta "
        "--alum-layer-norm-eps 1e-12$",
    ),
    (
        {"then": lambda path: with_options(path, activation_fn="relu")},
        {},
        "the activation relu, not gelu: give --activation-fn relu$",
    ),
    ({"then": lambda path: cut(path, 0.7)}, {}, "is no checkpoint, or was cut short"),
    ({"then": lambda path: cut(path, 0.001)}, {}, "is no checkpoint, or was cut short"),
    ({"then": lambda path: cut(path, 0)}, {}, "is no checkpoint, or was cut short"),
    ({"then": lambda path: cut(path, 0.7), "zipped": True}, {}, "is no checkpoint, or was cut"),
    ({"then": lambda path: path.write_text("<html>")}, {}, "is no checkpoint, or was cut short"),
    (
        {"then": lambda path: torch.save([1], path)},
        {},
        "is no checkpoint of fairseq: it has no",
    ),
    ({"then": lambda path: path.unlink()}, {}, "--restore-file .*model.pt does not exist"),
    (
        {"then": lambda path: torch.save({**torch.load(path), "model": {"a": 1}}, path)},
        {},
        "a is no plain tensor of numbers",
    ),
    ({"then": stripped}, {}, "has weights, but not the 'optimizer_history' and 'extra_state'"),
    (
        {"then": lambda path: without(path, "decoder.sentence_encoder.layers.1.fc2.bias")},
        {},
        "does not fit the model: encoder.sentence_encoder.layers.1.fc2.bias is missing. Choose the",
    ),
]


@pytest.mark.parametrize(("checkpoint", "wrong", "message"), WRONG)
def test_what_does_not_fit_is_named(
    checkpoint: dict[str, Any], wrong: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    then = checkpoint.get("then", lambda path: None)
    save_released(path, **{key: value for key, value in checkpoint.items() if key != "then"})
    if "vocabulary" not in checkpoint:
        begin(data, restore_file=path, reset_optimizer=True)  # as it is, it fits
    with pytest.raises(UsageError) as found:
        then(path)
        begin(data, restore_file=path, reset_optimizer=True, **wrong)
    assert re.search(message, str(found.value))
    assert "\n" not in str(found.value)


def test_a_released_head_is_left_behind(data: Path, tmp_path: Path) -> None:
    """roberta.large.mnli is a pre-trained model with a head of 3 classes."""
    path = tmp_path / "model.pt"
    save_released(path)
    state = torch.load(path)
    for name, size in {"dense": (32, 32), "out_proj": (3, 32)}.items():
        state["model"][f"classification_heads.mnli.{name}.weight"] = torch.zeros(size)
        state["model"][f"classification_heads.mnli.{name}.bias"] = torch.zeros(size[0])
    torch.save(state, path)
    begin(data, restore_file=path, reset_optimizer=True)
    model, _ = load_model(
        load_state(path), path, data=str(data / "input0"), load_checkpoint_heads=True
    )
    assert model.classification_heads["mnli"].out_proj.out_features == 3


def test_the_optimizer_of_another_criterion(train: Train, data: Path, tmp_path: Path) -> None:
    train("first", data=data, **FINETUNING, restore_file=None)
    last = tmp_path / "first/checkpoint_last.pt"
    begin(data, restore_file=last, max_positions=512)
    state = torch.load(last)
    state["optimizer_history"][-1]["criterion_name"] = "MaskedLmLoss"
    torch.save(state, last)
    with pytest.raises(UsageError, match="with the criterion MaskedLmLoss, not AlumSentencePredi"):
        begin(data, restore_file=last)
    begin(data, restore_file=last, reset_optimizer=True)
    begin(data, finetune_from_model=last)
    begin(data, save_dir=tmp_path / "elsewhere")


def test_a_run_ends_before_it_begins(train: Train, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_released(path)
    cut(path, 0.5)
    done = train("out", check=False, data=data, **FINETUNING, restore_file=path, **RESETS)
    assert done.returncode
    assert done.stdout.splitlines()[-1] == (
        f"alum_fairseq: error: {path} is no checkpoint, or was cut short"
    )
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "trapped",)

    for zipped in (True, False):
        torch.save(
            {"model": {}, "args": Trap()},
            tmp_path / "model.pt",
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(UsageError, match="whose loading could run code: it is not loaded"):
            load_state(tmp_path / "model.pt")
        assert not (tmp_path / "trapped").exists()
