"""What all ALUM tasks share: the criterion learns the number of the update."""

from __future__ import annotations

from typing import Any

from alum_fairseq.encoder_tap import check_layer


class PassesUpdateNumber:
    """Mixin for a fairseq task: its criterion can follow a schedule. Put it before the task.

    fairseq tells the number of the update to ``train_step`` of the task, never to the criterion.
    """

    passes_update_number = True

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model, and keep sight of it to check the criterion's options against."""
        self._built_model = super().build_model(cfg, from_checkpoint)
        return self._built_model

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion; if it is one of ours, make sure that it fits the model.

        Raises:
            UsageError: the model is no RoBERTa, or has no layer of the number that was asked for.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        model = getattr(self, "_built_model", None)
        if hasattr(criterion, "alum") and model is not None:
            check_layer(model, criterion.alum.layer)
        return criterion

    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As fairseq's, after the criterion was told the number of the update."""
        if hasattr(criterion, "set_num_updates"):
            criterion.set_num_updates(update_num)
        return super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs
        )
