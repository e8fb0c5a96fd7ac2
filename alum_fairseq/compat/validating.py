"""``fairseq-validate`` says where it does not do what it was asked for."""

from __future__ import annotations

import logging
from typing import Any

from alum_fairseq.compat.ours import is_ours

logger = logging.getLogger(__name__)


def say_which_criterion_validates() -> None:
    """Say in one line that a criterion of ours was asked for, and the checkpoint's is used.

    ``fairseq-validate`` always takes the criterion that a checkpoint was trained with: asked to
    attack a model of stock training, it does not. Can go when fairseq 0.12's takes ``--criterion``.
    """
    from fairseq import checkpoint_utils
    from fairseq.criterions import CRITERION_REGISTRY

    load = checkpoint_utils.load_model_ensemble_and_task

    def load_and_say(filenames: list[str], arg_overrides: Any = None, *a: Any, **kw: Any) -> Any:
        asked = (arg_overrides or {}).get("criterion")  # a dictionary puts another in its place
        models, cfg, task = load(filenames, arg_overrides, *a, **kw)
        used = getattr(cfg.criterion, "_name", None)
        named = isinstance(asked, str) and is_ours(CRITERION_REGISTRY.get(asked, object))
        if named and used != asked:
            logger.warning(
                f"--criterion {asked} is not used: {filenames[0]} was trained with {used}, which "
                "fairseq-validate takes, so nothing is attacked; alum-robustness attacks it"
            )
        return models, cfg, task

    checkpoint_utils.load_model_ensemble_and_task = load_and_say
