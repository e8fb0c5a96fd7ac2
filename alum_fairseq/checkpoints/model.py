"""From a checkpoint that was read to its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq import tasks
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.roberta import RobertaModel
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask
from torch import nn

from alum_fairseq.checkpoints.fit import check_fits, check_size
from alum_fairseq.checkpoints.reading import config_of
from alum_fairseq.errors import UsageError, one_line

# What a stranger's checkpoint may choose from. fairseq has tasks and models that read, write and
# run whatever their options name.
_TASKS = (MaskedLMTask, MultiLingualMaskedLMTask, SentencePredictionTask, SentenceRankingTask)
TOKEN_TASKS = ("span_prediction", "sequence_tagging")  # ours alone


def load_model(
    state: dict[str, Any], path: Path, **overrides: Any
) -> tuple[nn.Module, FairseqTask]:
    """Build the model of a checkpoint, by its own options but for some, and load its weights.

    What fairseq's ``load_model_ensemble_and_task`` does, with everything checked on the way.

    Returns:
        The model, in evaluation mode on the CPU, and the task.

    Raises:
        UsageError: it is no RoBERTa, it cannot be built, or the weights do not fit it.
    """
    cfg = config_of(state, path, **overrides)
    name = _name_of(cfg.task)
    of_tokens = str(name).removeprefix("alum_") in TOKEN_TASKS
    if not (of_tokens or issubclass(TASK_REGISTRY.get(str(name), object), _TASKS)):
        raise UsageError(
            f"{path} was trained by the task {name}: known are masked_lm, sentence_prediction, "
            f"sentence_ranking and what extends them, {', '.join(TOKEN_TASKS)}"
        )
    require_roberta(_name_of(cfg.model), path)
    check_size(cfg, state["model"], path)
    try:
        task = tasks.setup_task(cfg.task, from_checkpoint=True)
        model = task.build_model(cfg.model, from_checkpoint=True)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    except FileNotFoundError as error:
        raise UsageError(f"{path} needs {error.filename}, which does not exist") from None
    except Exception as error:  # strangers' values again
        raise UsageError(f"{path}: its model cannot be built: {one_line(error)}") from None
    check_fits(state, model, path)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    return model.eval(), task


def _name_of(options: Any) -> Any:
    """What fairseq calls the task or the model that options are for."""
    return getattr(options, "_name", None) or getattr(options, "arch", None)


def require_roberta(name: Any, path: Path) -> None:
    """Raise a UsageError unless a checkpoint's architecture is one of RoBERTa's."""
    if not issubclass(ARCH_MODEL_REGISTRY.get(str(name), object), RobertaModel):
        raise UsageError(f"{path} is a model of the architecture {name}, not a RoBERTa")
