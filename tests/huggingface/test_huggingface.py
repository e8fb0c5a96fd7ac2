"""The adapter for Hugging Face: against the fairseq path, plain training, and differences."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.one_batch import HEAD, make_case, step
from support.places import ROOT
from torch import Tensor
from torch.nn.functional import cross_entropy

from alum_fairseq.adversarial.presets import PRESETS
from alum_fairseq.convert.weights import Tensors, to_transformers
from alum_fairseq.errors import UsageError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from alum_fairseq.huggingface import AlumTrainer  # noqa: E402

CONFIGS = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "distilbert": transformers.DistilBertConfig,
    "electra": transformers.ElectraConfig,
}
TASKS = ("classification", "regression", "masked_lm")
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_model(family: str = "bert", task: str = "classification", **more: Any) -> Any:
    sizes = {"vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 1}
    sizes |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "distilbert":
        sizes |= {"hidden_dim": 32}
    else:
        sizes |= {"intermediate_size": 32}
    if family == "electra":
        sizes |= {"embedding_size": 8}
    if task == "regression":
        sizes |= {"num_labels": 1}
    torch.manual_seed(1)
    config = CONFIGS[family](**sizes, initializer_range=0.2, **more)
    if task == "masked_lm":
        return transformers.AutoModelForMaskedLM.from_config(config)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def make_rows(task: str, count: int = 32) -> list[dict[str, Any]]:
    """Of different lengths; the label follows from the second token."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for number in range(count):
        length = 5 + number % 7
        ids = torch.randint(5, 60, (length,), generator=generator).tolist()
        label: Any = int(ids[1] > 32)
        if task == "regression":
            label = float(label)
        if task == "masked_lm":
            label = [-100, ids[1], *[-100] * 10]
            ids[1] = 4
        padding = 12 - length
        mask = [1] * length + [0] * padding
        rows.append({"input_ids": ids + [1] * padding, "attention_mask": mask, "labels": label})
    return rows


def make_trainer(
    folder: Path, model: Any, task: str = "classification", kind: Any = AlumTrainer, **given: Any
) -> Any:
    own = ("alum_", "compute_loss_func", "model_init")
    alum = {name: given.pop(name) for name in list(given) if name.startswith(own)}
    args = transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        **{"max_steps": 4, "per_device_train_batch_size": 8, "logging_steps": 2,
           "learning_rate": 1e-3, "seed": 3, **given},
    )  # fmt: skip
    return kind(model=model, args=args, train_dataset=make_rows(task), **alum)


def batch_of(task: str) -> dict[str, Tensor]:
    rows = make_rows(task, 8)
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def logs_of(trainer: Any) -> list[dict[str, float]]:
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", task) for task in TASKS] + [(family, "classification") for family in [*CONFIGS][1:]],
)
def test_every_preset_trains_every_encoder(
    family: str, preset: str, task: str, tmp_path: Path
) -> None:
    model = make_model(family, task)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(
        tmp_path, model, task, alum_preset=preset, max_steps=2, alum_log_gain_interval=1
    )
    trainer.train()
    [log] = logs_of(trainer)
    assert {"loss", "adv_loss", "adv_norm", "adv_gain", "adv_skipped"} <= log.keys()
    assert log["adv_loss"] > 0
    assert log["adv_norm"] > 0
    assert log["adv_skipped"] == 0
    words = model.get_input_embeddings().weight
    changed = [
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    ]
    assert len(changed) > len(before) / 2
    assert torch.isfinite(words).all()


@pytest.mark.parametrize("family", CONFIGS)
def test_training_lowers_the_loss_and_the_perturbation_is_adversarial(
    family: str, tmp_path: Path
) -> None:
    trainer = make_trainer(
        tmp_path, make_model(family), max_steps=80, logging_steps=10, learning_rate=5e-3,
        alum_log_gain_interval=1,
    )  # fmt: skip
    trainer.train()
    first, *_, last = logs_of(trainer)
    assert last["loss"] < 0.6 * first["loss"]
    assert last["adv_gain"] > 2
    assert trainer.evaluate(make_rows("classification"))["eval_loss"] < 0.3


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("given", [{"alum_alpha": 0}, {"alum_start_update": 4}])
def test_without_the_adversary_it_is_the_plain_trainer_to_the_bit(
    task: str, given: dict[str, Any], tmp_path: Path
) -> None:
    trained = []
    for kind, alum in ((AlumTrainer, given), (transformers.Trainer, {})):
        trainer = make_trainer(tmp_path, make_model(task=task), task, kind, **alum)
        trainer.train()
        trained.append((trainer.model.state_dict(), [log["loss"] for log in logs_of(trainer)]))
    (ours, losses), (plain, wanted) = trained
    assert losses == wanted
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("site", ["words", "embeddings", "1"])
@pytest.mark.parametrize("task", TASKS)
def test_a_perturbation_of_nothing_changes_nothing_whatever_dropout_does(
    site: str, task: str, tmp_path: Path
) -> None:
    found = {}
    for epsilon in (1e-12, 0.5):
        trainer = make_trainer(
            tmp_path, make_model(task=task), task, alum_site=site, alum_epsilon=epsilon
        )
        model = trainer.model.train()
        torch.manual_seed(5)
        loss = trainer.compute_loss(model, batch_of(task))
        torch.manual_seed(5)
        plain = model(**batch_of(task))["loss"]
        found[epsilon] = float(loss.detach() / plain.detach()) - 1
    assert abs(found[1e-12]) < 1e-5
    assert found[0.5] > 1e-2


def test_dropout_of_the_passes(tmp_path: Path) -> None:
    losses = {}
    for dropout in ("shared", "independent"):
        trainer = make_trainer(
            tmp_path, make_model(), alum_dropout=dropout, alum_epsilon=1e-12, alum_preset="r3f",
            alum_noise_std=1e-12,
        )  # fmt: skip
        trainer.compute_loss(trainer.model.train(), batch_of("classification"))
        losses[dropout] = float(trainer._sums["loss"])
    assert losses["shared"] < 1e-9
    assert losses["independent"] > 1e-3


@pytest.mark.parametrize("preset", ["calibrated", "vat", "fgm", "freelb"])
def test_what_padding_holds_does_not_matter(preset: str, tmp_path: Path) -> None:
    losses = []
    for padding in (1, 7):
        batch = batch_of("classification")
        batch["input_ids"][batch["attention_mask"] == 0] = padding
        trainer = make_trainer(tmp_path, make_model(**OFF), alum_preset=preset)
        torch.manual_seed(0)
        losses.append(float(trainer.compute_loss(trainer.model.train(), batch)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_gradients_are_those_of_finite_differences(tmp_path: Path) -> None:
    # At the random start alone, which does not depend on the parameters.
    model = make_model(**OFF).double()
    trainer = make_trainer(tmp_path, model, alum_preset="freelb", alum_steps=0)

    def loss() -> Tensor:
        torch.manual_seed(9)
        return trainer.compute_loss(model.train(), batch_of("classification"))

    loss().backward()
    for parameter in (model.classifier.weight, model.get_input_embeddings().weight):
        place = divmod(int(parameter.grad.abs().argmax()), parameter.shape[1])
        gradient, values = float(parameter.grad[place]), []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter[place] += shift
            values.append(float(loss().detach()))
        with torch.no_grad():
            parameter[place] += 1e-5
        assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


SAME = [
    {"alum_preset": "calibrated", "alum_epsilon": 0.3},
    {"alum_preset": "calibrated", "alum_site": "1", "alum_steps": 2},
    {"alum_preset": "reference"},
    {"alum_preset": "vat", "alum_epsilon": 0.2},
    {"alum_preset": "r3f", "alum_noise_std": 0.1},
    {"alum_preset": "fgm", "alum_epsilon": 0.1},
    {"alum_preset": "pgd", "alum_epsilon": 0.1},
    {"alum_preset": "freelb"},
]


@pytest.mark.parametrize("options", SAME, ids=lambda one: "-".join(map(str, one.values())))
@pytest.mark.parametrize("kind", ["mlm", "classification", "regression"])
def test_loss_and_gradients_are_those_of_the_fairseq_path(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs, sample, criterion = make_case(kind, dropout=0.0, activation_fn="gelu")
    theirs.float()
    options = {**options, "alum_log_gain_interval": 0}
    loss, _, gradients = step(criterion(**options), theirs, sample)

    layout = SimpleNamespace(
        encoder_embed_dim=16, encoder_ffn_embed_dim=32, encoder_layers=2, max_positions=64,
        encoder_normalize_before=False, untie_weights_roberta=False,
    )  # fmt: skip
    head = None if kind == "mlm" else HEAD

    def converted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = {name: torch.zeros_like(t) for name, t in theirs.state_dict().items()} | tensors
        return to_transformers(Tensors(whole, "the model"), layout, head, "", 0)

    tokens = sample["net_input"]["src_tokens"]
    labels = sample["target"]
    config = transformers.RobertaConfig(
        vocab_size=len(theirs.state_dict()["encoder.sentence_encoder.embed_tokens.weight"]),
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
        num_labels=1 if kind == "regression" else 3, **OFF,
    )  # fmt: skip
    if kind == "mlm":
        ours = transformers.RobertaForMaskedLM(config)
        labels, size = labels.masked_fill(labels == 1, -100), int((labels != 1).sum())
    else:
        ours = transformers.RobertaForSequenceClassification(config)
        labels, size = labels.flatten(), len(labels)
        labels = labels.float() if kind == "regression" else labels
    weights = converted(dict(theirs.state_dict()))
    missing, unknown = ours.load_state_dict(weights, strict=False)
    assert not unknown
    assert all("decoder" in name for name in missing)

    trainer = make_trainer(tmp_path, ours, **options)
    inputs = {"input_ids": tokens, "attention_mask": tokens.ne(1).long(), "labels": labels}
    torch.manual_seed(2)
    found = trainer.compute_loss(ours.train(), inputs)
    found.backward()
    torch.testing.assert_close(found.detach(), loss / size, rtol=1e-5, atol=1e-5)
    wanted = converted(gradients)
    compared = 0
    for name, parameter in ours.named_parameters():
        if "token_type" not in name and name in wanted:
            torch.testing.assert_close(
                parameter.grad,
                wanted[name] / size,
                rtol=1e-4,
                atol=1e-5,
                msg=name,
            )
            compared += 1
    assert compared >= 37


def summed(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """A loss function as transformers' manual shows them."""
    logits = outputs["logits"].flatten(0, -2)
    return cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("divides", [False, True])
def test_small_batches_make_the_update_of_one(divides: bool, task: str, tmp_path: Path) -> None:
    # FGM draws no random numbers. BERT's own loss is a batch's mean, and the Trainer adds up two.
    def squared(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        return (outputs["logits"].flatten() - labels).square().sum() / num_items_in_batch

    function = squared if task == "regression" else summed
    loss = {"compute_loss_func": function} if divides else {}
    trained, before = [], make_model(task=task, **OFF).state_dict()
    for size, times in ((8, 1), (4, 2)):
        trainer = make_trainer(
            tmp_path, make_model(task=task, **OFF), task, alum_preset="fgm", alum_epsilon=0.1,
            max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=times,
            optim="sgd", learning_rate=1, max_grad_norm=0, **loss,
        )  # fmt: skip
        trainer.train()
        trained.append(trainer.model.state_dict())
    for name, tensor in before.items():
        one, two = (state[name] - tensor for state in trained)
        torch.testing.assert_close(two, one if divides else 2 * one, rtol=1e-4, atol=1e-5)


LOSSES = {
    "mean": {},
    "divided": {"compute_loss_func": summed},
    "smoothed": {"label_smoothing_factor": 0.1},
}


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("preset", ["calibrated", "fgm"])
def test_an_update_is_as_long_as_the_plain_trainers(
    preset: str, loss: str, times: int, tmp_path: Path
) -> None:
    trained = []
    for alpha in (0, 1e-9):
        trainer = make_trainer(
            tmp_path, make_model(task="masked_lm", **OFF), "masked_lm", alum_preset=preset,
            alum_alpha=alpha, max_steps=1, logging_steps=1, gradient_accumulation_steps=times,
            optim="sgd", learning_rate=1, max_grad_norm=0, **LOSSES[loss],
        )  # fmt: skip
        trainer.train()
        trained.append((trainer.model.state_dict(), logs_of(trainer)[0]["loss"]))
    (plain, plain_loss), (ours, our_loss) = trained
    assert our_loss == pytest.approx(plain_loss, rel=1e-4)
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_perturbation_is_found_at_every_scale_that_training_stands(tmp_path: Path) -> None:
    # As with fp16: the logits' gradients are float16 numbers, of which the largest is 65504.
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            return logits.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.half().float()

    for items in (None, torch.tensor(16)):
        for scale in (2.0**k for k in range(10, 24)):
            model = make_model(**OFF)
            model.classifier.register_forward_hook(lambda _, args, output: Half.apply(output))
            torch.manual_seed(3)
            trainer = make_trainer(tmp_path, model, alum_objective="task-loss")
            trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)
            loss = trainer.compute_loss(model.train(), batch_of("classification"), False, items)
            (loss * scale).backward()
            finite = torch.isfinite(model.classifier.weight.grad).all()
            assert trainer._sums["skipped"] == (not finite)


@pytest.mark.parametrize("loss", [{}, {"compute_loss_func": summed}], ids=["own", "function"])
@pytest.mark.parametrize("items", [None, 0, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_without_a_label_adds_nothing(
    preset: str, items: int | None, loss: dict[str, Any], tmp_path: Path
) -> None:
    trainer = make_trainer(
        tmp_path, make_model(task="masked_lm"), "masked_lm", alum_preset=preset, **loss
    )
    batch = batch_of("masked_lm")
    batch["labels"].fill_(-100)
    count = items if items is None else torch.tensor(items)
    found = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count)
    found.backward()
    assert float(found.detach()) == 0
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("preset", ["calibrated", "fgm", "freelb"])
def test_a_loss_function_of_ones_own(preset: str, tmp_path: Path) -> None:
    trained = []
    for loss in ({}, {"compute_loss_func": summed}):
        trainer = make_trainer(tmp_path, make_model(), alum_preset=preset, max_steps=2, **loss)
        trainer.train()
        trained.append(trainer.model.state_dict())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name])


@pytest.mark.parametrize("site", ["words", "embeddings"])
def test_the_model_of_a_run_is_that_of_model_init(site: str, tmp_path: Path) -> None:
    trained, one_batch = [], {"per_device_train_batch_size": 32, "optim": "sgd"}
    for model, given in (
        (None, {"model_init": lambda: make_model(**OFF)}),
        (make_model(**OFF), {}),
    ):
        trainer = make_trainer(
            tmp_path,
            model,
            alum_preset="fgm",
            alum_site=site,
            learning_rate=0.1,
            **one_batch,
            **given,
        )
        trainer.train()
        trained.append(trainer.model.state_dict())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name])


def test_the_momentum_model_follows(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    class Seeing(AlumTrainer):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
            return super().compute_loss(model, *args, **kwargs)

    trainer = make_trainer(tmp_path, make_model(), kind=Seeing, alum_preset="smart", max_steps=12)
    trainer.train()
    follower, _ = trainer._momentum
    wanted = dict(seen[0])
    for updates, weights in enumerate(seen[1:]):
        decay = 0.99 if updates < 1.2 else 0.999
        wanted = {name: decay * w + (1 - decay) * weights[name] for name, w in wanted.items()}
    for name, parameter in follower.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-5, atol=1e-6)
    assert not follower.training


def test_a_second_run_begins_anew(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), alum_preset="smart", alum_log_gain_interval=4)
    trainer.train()
    follower, _ = trainer._momentum
    trainer.train()
    assert trainer._momentum[0] is not follower
    assert "adv_gain" in logs_of(trainer)[0]  # both runs measure it at their first update


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ({}, {"alum_epsilon": 0}, "alum_epsilon is 0: it must be a finite number above 0"),
        (
            {},
            {"alum_preset": "alun"},
            "alum_preset is 'alun': it must be one of",
        ),
        ({}, {"alum_epsilom": 1}, "alum_epsilom is no option here: .* did you mean epsilon?"),
        ({}, {"alum_preset": "freelb", "alum_alpha": 2}, "alum_alpha has no effect with"),
        ({}, {"alum_site": "2"}, "alum_site is 2: no such layer is found in a Bert"),
        ({}, {"gradient_checkpointing": True}, "gradient_checkpointing, torch_compile and several"),
        (
            {"problem_type": "multi_label_classification"},
            {},
            "problem_type multi_label_class.* cannot be",
        ),
        ({}, {"alum_site": "2"}, "in a BertForSequenceClassification: try words"),
        ({"num_labels": 1}, {"alum_divergence": "kl"}, "alum_divergence is kl: for regression"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    model: dict[str, Any], given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        make_trainer(tmp_path, make_model(**model), **given)
    assert "\n" not in str(error.value)


def test_the_example_runs_as_it_is_printed(tmp_path: Path) -> None:
    script = ROOT / "examples/huggingface/train.py"
    text = script.read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line]) <= 30
    page = (ROOT / "docs/huggingface.md").read_text(encoding="utf-8")
    assert f"```python\n{text}```" in page
    [command] = re.findall(r"^python examples/huggingface/train.py (.*)$", page, re.MULTILINE)
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "good", "bad", "very"]
    folder = tmp_path / "MODEL"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    make_model().save_pretrained(folder)
    for name in ("train", "valid"):
        rows = [f"a {'very ' * k}{word} film\t{int(word == 'good')}"
                for k in range(4) for word in ("good", "bad")]  # fmt: skip
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    done = subprocess.run(
        [sys.executable, script, *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "eval_accuracy" in done.stdout
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "finetuned")
    assert saved.config.num_labels == 2


def test_models_that_are_no_such_encoders_are_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2}
    decoder = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    with pytest.raises(UsageError, match=r"GPT2LMHeadModel .* cannot be trained here"):
        make_trainer(tmp_path, decoder)
    config = make_model("electra").config
    discriminator = transformers.ElectraForPreTraining(config)
    trainer = make_trainer(tmp_path, discriminator, "masked_lm")
    with pytest.raises(UsageError, match=r"logits \(8, 12\) are not of one class for a label"):
        trainer.compute_loss(discriminator.train(), batch_of("masked_lm"))


@pytest.mark.parametrize("kind", ["QuestionAnswering", "MultipleChoice", "PreTraining"])
def test_models_with_other_labels_are_refused(kind: str, tmp_path: Path) -> None:
    model = getattr(transformers, f"BertFor{kind}")(make_model().config)
    with pytest.raises(UsageError, match=f"BertFor{kind} .* cannot be trained here"):
        make_trainer(tmp_path, model)


SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 1}  # fmt: skip
WORDS_ALONE = {
    "Albert": {**SMALL, "embedding_size": 16},
    "Flaubert": {"vocab_size": 60, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_index": 1},
    "Funnel": {"vocab_size": 60, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32,
               "block_sizes": [1, 1]},
    "SqueezeBert": {**SMALL, "embedding_size": 16},
    "XLM": {"vocab_size": 60, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_index": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", WORDS_ALONE)
def test_encoders_whose_layers_cannot_be_perturbed(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**WORDS_ALONE[family])
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    said = f"alum_site is embeddings: no such layer is found in a {family}.*: try words"
    with pytest.raises(UsageError, match=said):
        make_trainer(tmp_path, model, alum_site="embeddings")
    trainer = make_trainer(tmp_path, model, alum_site="words", max_steps=1, logging_steps=1)
    trainer.train()
    assert logs_of(trainer)[0]["adv_loss"] > 0


def test_a_pass_that_does_not_come_by_the_site_is_refused(tmp_path: Path) -> None:
    model = transformers.IBertForSequenceClassification(transformers.IBertConfig(**SMALL))
    trainer = make_trainer(tmp_path, model, alum_site="words")
    with pytest.raises(UsageError, match=r"alum_site is words: the pass of a IBert.* not come by"):
        trainer.train()
    trainer = make_trainer(tmp_path, model, alum_site="embeddings", max_steps=1, logging_steps=1)
    trainer.train()
    assert logs_of(trainer)[0]["adv_loss"] > 0


def test_it_needs_no_fairseq() -> None:
    code = (
        "import sys; sys.modules.update(fairseq=None, hydra=None, omegaconf=None)\n"
        "import alum_fairseq.huggingface\n"
        "assert not [m for m in sys.modules if m.startswith('fairseq.')]"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
