"""What is drawn for an example is new in every epoch, and the same for any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from support.quick_train import mlm_options
from support.untrained import make_case
from torch import Tensor

# What may draw.
MASKS = {"task": "alum_masked_lm"}
CROPS = {"mask_prob": 1e-9, "shorten_method": "random_crop", "tokens_per_sample": 20}
CASES: dict[str, dict[str, Any]] = {
    "masks": MASKS,
    "masks, fairseq's task": {"task": "masked_lm"},
    "crops in pre-training": CROPS,
    "crops in fine-tuning": {
        **{"task": "alum_sentence_prediction", "criterion": "alum_sentence_prediction"},
        **{"tokens_per_sample": None, "sample_break_mode": None, "num_classes": 3},
        **{"shorten_method": "random_crop", "max_positions": 20, "init_token": 0},
    },
}


def trainer_of(data: Path, **options_: Any) -> Trainer:
    chosen = {"disable_validation": True, **options_}
    args = options.parse_args_and_arch(
        options.get_training_parser(), mlm_options(data, Path("unused"), **chosen)
    )
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def epochs_of(data: Path, number: int, start: int = 1, **more: Any) -> list[dict[int, list[int]]]:
    """The tokens of every example, in some epochs, as fairseq-train loads them."""
    trainer = trainer_of(data, **more)
    batches, found = trainer.get_train_iterator(start), []
    for epoch in range(start, start + number):
        each = batches.next_epoch_itr(shuffle=False)
        trainer.begin_epoch(epoch)
        found.append({})
        for sample in each:
            rows: Tensor = sample["net_input"]["src_tokens"]
            found[-1] |= dict(zip(sample["id"].tolist(), rows.tolist(), strict=True))
        batches = trainer.get_train_iterator(batches.next_epoch_idx, load_dataset=False)
    return found


@pytest.mark.parametrize("case", CASES)
def test_each_epoch_draws_anew_and_alike_for_any_number_of_workers(
    case: str, mlm_data: Path, few_data: Path, tmp_path: Path
) -> None:
    options, data = CASES[case], few_data
    if "num_classes" in options:
        data = make_case("single", mlm_data, tmp_path).data
    first, second = expected = epochs_of(data, 2, num_workers=0, **options)
    # A short text has nothing to crop, and two crops may coincide.
    alike = sum(first[number] == second[number] for number in first)
    assert alike <= (0 if "masks" in case else 0.7 * len(first)), f"{alike} of {len(first)}"
    for workers in (1, 2):
        assert epochs_of(data, 2, num_workers=workers, **options) == expected
    # And as in a process that begins with this epoch.
    assert epochs_of(data, 1, start=2, num_workers=1, **options) == [second]


def test_fairseq_without_the_plugin_is_as_it_was(few_data: Path) -> None:
    """When this fails, fairseq has mended it, and ``compat.epochs`` may go."""
    stock = {"task": "masked_lm", "criterion": "masked_lm", "num_workers": 1}
    first, second = epochs_of(few_data, 2, **stock)
    assert first == second


def test_bf16_is_not_taken_for_a_tpu(mlm_data: Path) -> None:
    def tpu(*more: str, **chosen: Any) -> bool:
        command = [*mlm_options(mlm_data, Path("unused"), bf16=True, **chosen), *more]
        return options.parse_args_and_arch(options.get_training_parser(), command).tpu

    assert not tpu()
    assert tpu("--tpu")
    assert tpu(task="masked_lm", criterion="masked_lm")
    assert not tpu(task="masked_lm")
