"""What all ALUM tasks share: the update number for the criterion, and checks before training."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairseq.data import RawLabelDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.file_io import PathManager
from fairseq.utils import split_paths
from omegaconf import II, DictConfig
from torch import distributed

from alum_fairseq.checkpoints.fit import (
    check_fits,
    check_resumable,
    check_same_heads,
    is_as_deep,
)
from alum_fairseq.checkpoints.reading import settings_of
from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.data.binarized import read_label_lines
from alum_fairseq.data.vocabulary import DICTIONARY, load_dictionary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, existing_folder, reporting_access_errors
from alum_fairseq.tasks.best_metric import check_best_metric
from alum_fairseq.tasks.loss_scale import loss_scale_of
from alum_fairseq.tasks.momentum import MomentumSchedule
from alum_fairseq.tasks.starting_point import (
    load_starting_point,
    starting_point,
    warn_of_another_order,
    warn_of_missing_tokens,
    warn_of_other_data,
    warn_of_other_options,
)
from alum_fairseq.threads import cores, idle_cores

logger = logging.getLogger(__name__)


@dataclass
class AlumTaskConfig(FairseqDataclass):
    """Not options, but what other options of fairseq resolve to; tasks see them no other way."""

    alum_save_dir: str = II("checkpoint.save_dir")
    alum_restore_file: str = II("checkpoint.restore_file")
    alum_finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    # Not bool: fairseq-train would make bool("${...}") of it.
    alum_reset_optimizer: Any = II("checkpoint.reset_optimizer")  # noqa: RUF009
    alum_ddp_backend: str = II("distributed_training.ddp_backend")
    alum_broadcast_buffers: Any = II("distributed_training.broadcast_buffers")  # noqa: RUF009
    alum_reset_lr_scheduler: Any = II("checkpoint.reset_lr_scheduler")  # noqa: RUF009
    alum_reset_dataloader: Any = II("checkpoint.reset_dataloader")  # noqa: RUF009
    alum_reset_meters: Any = II("checkpoint.reset_meters")  # noqa: RUF009
    alum_best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    alum_maximize_metric: Any = II("checkpoint.maximize_best_checkpoint_metric")  # noqa: RUF009
    alum_disable_validation: Any = II("dataset.disable_validation")  # noqa: RUF009
    alum_train_subset: str = II("dataset.train_subset")
    alum_store_ema: Any = II("ema.store_ema")  # noqa: RUF009
    alum_skip_long: Any = II("dataset.skip_invalid_size_inputs_valid_test")  # noqa: RUF009


class AlumTask:
    """Mixin for a fairseq task. Put it before the task among the bases.

    Its criterion can follow a schedule: fairseq tells the number of the update to ``train_step`` of
    the task, never to the criterion. And what training starts from is looked at before it starts.
    """

    passes_update_number = True
    uses_ema = True  # asks fairseq's trainer for its EMA model, where --store-ema keeps one
    cfg: Any
    _built_model: Any = None
    _trained_by: Optional[tuple[Path, Any]] = None
    _trained_with: Mapping[str, Any] = {}
    _trains = False

    @cached_property
    def _momentum_schedule(self) -> MomentumSchedule:
        return MomentumSchedule(self.cfg._get_root())

    @property
    def passes_ema_model(self) -> bool:
        """Whether there is an EMA model to pass on."""
        return bool(self.cfg.alum_store_ema)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> Any:
        """Set the task up, after a look at its options and dictionaries.

        Raises:
            UsageError: an option is out of its range, or a dictionary is missing, broken or closed
                to this user.
        """
        with reporting_access_errors():
            if not PathManager.path_requires_pathmanager(cfg.data):
                _name_data_from_everywhere(cfg)
                cls.check_setup(cfg)
            return super().setup_task(cfg, **kwargs)

    @classmethod
    def check_setup(cls, cfg: Any) -> None:
        """Make sure that options and dictionaries are as they should be; for tasks to extend."""

    def check_data(self, split: str, epoch: int, combine: bool) -> Optional[list[Any]]:
        """Make sure that the files of a split are whole; for tasks to extend.

        Returns:
            The labels of all that is combined, where they are lines of text; else None.
        """

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> Any:
        """Load a split, after a look at its files.

        Raises:
            UsageError: a file is missing, broken, cut short or closed to this user, or an example
                is too long.
        """
        labels = None
        with reporting_access_errors():
            if not PathManager.path_requires_pathmanager(self.cfg.data):
                labels = self.check_data(split, kwargs.get("epoch", 1), combine)
            with _labelled_by(labels):
                loaded = super().load_dataset(split, combine=combine, **kwargs)
        self._check_lengths(split)
        return loaded

    def _check_lengths(self, split: str) -> None:
        """Make sure that the model can read the examples.

        fairseq leaves out what is too long for training, and fails at it in the first validation.
        """
        if self._built_model is None:
            return
        lengths = _lengths(self.datasets[split])
        most = min(self.max_positions(), self._built_model.max_positions())
        too_long = int((lengths > most).sum())
        training = split == self.cfg.alum_train_subset
        if too_long and (too_long == len(lengths) if training else not self.cfg.alum_skip_long):
            remedy = (
                f"--tokens-per-sample {most}"
                if hasattr(self.cfg, "tokens_per_sample")
                else "--shorten-method truncate"
            )
            if not training:
                remedy += ", or --skip-invalid-size-inputs-valid-test to leave them out"
            raise UsageError(
                f"{too_long:,} of {len(lengths):,} examples of {split} have up to {lengths.max()} "
                f"tokens, but the model has {most} positions: give {remedy}"
            )

    def get_batch_iterator(
        self, dataset: Any, *args: Any, required_batch_size_multiple: int = 1, **kwargs: Any
    ) -> Any:
        """As fairseq's, but all examples of a validation set are in its batches.

        fairseq leaves out the last batch if its size is no multiple of this number. Can go when
        fairseq 0.12's ``data_utils.batch_by_size`` keeps it. In training it is left out and said.

        Raises:
            UsageError: no batch of the training data is left.
        """
        training = dataset is self.datasets.get(self.cfg.alum_train_subset) and self._trains
        multiple = required_batch_size_multiple if training else 1
        batches = super().get_batch_iterator(
            dataset, *args, required_batch_size_multiple=multiple, **kwargs
        )
        if multiple > 1:
            fitting = _lengths(dataset) <= (kwargs.get("max_positions") or np.inf)
            left_out = int(fitting.sum()) - sum(map(len, batches.frozen_batches))
            said = (
                f"--required-batch-size-multiple is {multiple}: {left_out:,} of {len(dataset):,} "
                "training examples are in no batch"
            )
            if not batches.frozen_batches:
                raise UsageError(f"{said}; give 1")
            if left_out:
                logger.info(f"{said}, in any epoch; 1 takes all")
        return batches

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model, and make sure that the checkpoint to start from fits it.

        Raises:
            UsageError: there is no such checkpoint, it cannot be read, or it does not fit.
        """
        model = super().build_model(cfg, from_checkpoint)
        # To check the criterion against, which is built next.
        self._built_model, self._trained_by, self._trains = model, None, not from_checkpoint
        if self._trains:
            self._advise_on_threads()
            with reporting_access_errors():
                self._check_starting_point(model, cfg)
        return model

    def _advise_on_threads(self) -> None:
        """Say in one line that threads will wait for each other; on a GPU they hardly matter."""
        threads, idle = torch.get_num_threads(), idle_cores()
        chosen = "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available()
        if threads > idle and not chosen:
            logger.info(
                f"torch computes on {threads} threads, with {idle} of {cores()} cores idle: "
                f"OMP_NUM_THREADS={idle} before fairseq-train may be several times as fast"
            )

    def _check_starting_point(self, model: Any, cfg: Any) -> None:
        path = starting_point(self.cfg)
        reads = not distributed.is_initialized() or distributed.get_rank() == 0  # for the others
        # Each process leaves out layers by itself.
        layers_to_keep = getattr(cfg, "encoder_layers_to_keep", None)
        if path is None or not (reads or layers_to_keep):
            return
        state = load_starting_point(path)
        check_resumable(state, path)
        if layers_to_keep and is_as_deep(state, model):
            # This run's own checkpoint, whose layers are the kept ones.
            layers_to_keep = cfg.encoder_layers_to_keep = None
        check_fits(state, model, path, layers_to_keep)
        _, settings = settings_of(state, path)
        if hasattr(self.cfg, "init_token"):
            warn_of_missing_tokens(settings, self.cfg, path)
        asked_for = self.cfg.alum_finetune_from_model
        anew = self.cfg.alum_reset_optimizer or (asked_for is not None and path == Path(asked_for))
        if state.get("last_optimizer_state") is not None and not anew:
            warn_of_other_data(state, self.cfg.data, path)
            check_same_heads(state, model, path)
            self._trained_by = path, state["optimizer_history"][-1].get("criterion_name")
            self._trained_with = settings
        elif (names := getattr(self, "class_names", None)) is not None:
            warn_of_another_order(state, names, path)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion; make sure that it fits the model and the checkpoint.

        Raises:
            UsageError: the criterion is one of ours, but the model is no RoBERTa, has no layer of
                the number that was asked for, or is to be trained in a way that the options do not
                go with; or the checkpoint's optimizer belongs to training by another criterion.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        if isinstance(criterion, AlumCriterion) and self._built_model is not None:
            criterion.check_model(self._built_model)
            if self._trains:
                self._check_training(criterion)
        if self._trained_by is not None:
            path, name = self._trained_by
            if name != type(criterion).__name__:
                raise UsageError(
                    f"{path} comes from training with the criterion {name}, not "
                    f"{type(criterion).__name__}, whose optimizer cannot go on from it: give "
                    "--finetune-from-model instead of --restore-file, or add --reset-optimizer "
                    "--reset-dataloader --reset-meters"
                )
            if isinstance(criterion, AlumCriterion) and isinstance(cfg, DictConfig):
                warn_of_other_options(self._trained_with, cfg, path)
        return criterion

    def _check_training(self, criterion: AlumCriterion) -> None:
        if self.cfg.alum_ddp_backend == "fully_sharded":
            raise UsageError(
                "--ddp-backend is fully_sharded: the adversary re-runs parts of the model, for "
                "which sharded weights are not gathered; choose pytorch_ddp or legacy_ddp"
            )
        if criterion.options.alum_fraction < 1 and self.cfg.alum_broadcast_buffers:
            raise UsageError(
                f"--alum-fraction is {criterion.options.alum_fraction}: with it workers make "
                "different numbers of passes, but --broadcast-buffers makes each wait for the "
                "others in every one: leave one of the two away"
            )
        if not self.cfg.alum_disable_validation:
            check_best_metric(
                str(self.cfg.alum_best_checkpoint_metric),
                bool(self.cfg.alum_maximize_metric),
                criterion,
            )

    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        ema_model: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As fairseq's, after the criterion was told what this update is like."""
        if isinstance(criterion, AlumCriterion):
            scale = loss_scale_of(optimizer) if criterion.scales_gradients else 1.0
            criterion.prepare_update(update_num, scale, ema_model)
            if criterion.preset.proximal > 0:
                self._momentum_schedule.set_decay(update_num)
        return super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs
        )

    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any, ema_model: Any = None, **kw: Any
    ) -> Any:
        """As fairseq's, which takes no EMA model."""
        return super().valid_step(sample, model, criterion, **kw)


def _name_data_from_everywhere(cfg: Any) -> None:
    """Make the path of the data absolute: checkpoints hold it, and are used in other folders."""
    cfg.data = os.pathsep.join(map(os.path.abspath, split_paths(cfg.data)))
    # What is saved is the root; this is a copy of a part of it, or of the options of a namespace.
    if isinstance(cfg, DictConfig) and "task" in (root := cfg._get_root()):
        root.task.data = cfg.data


def check_dictionary(folder: Path) -> int:
    """The number of a dictionary's symbols; a UsageError if it is missing or broken."""
    existing_folder(folder)
    existing_file(folder / DICTIONARY)
    return len(load_dictionary(folder))


def check_inputs(cfg: Any) -> None:
    """Raise a UsageError unless ``input0`` has a dictionary with the task's special tokens."""
    check_symbols(cfg, check_dictionary(Path(cfg.data) / "input0") + 1)  # <mask>


def check_symbols(cfg: Any, symbols: int) -> None:
    """Raise a UsageError unless the special tokens are among so many symbols."""
    for name in ("init_token", "separator_token"):
        token = getattr(cfg, name)
        if token is not None and not 0 <= token < symbols:
            raise UsageError(
                f"--{name.replace('_', '-')} is {token}: it must be the number of a symbol, from 0 "
                f"(<s>) to {symbols - 1}"
            )


def require_labels(path: Path, split: str) -> None:
    """Raise a UsageError if the file of a split's labels is missing."""
    if not path.is_file():
        raise UsageError(
            f"{split} has no labels ({path} does not exist): make the data again with them, or "
            "leave it out of --valid-subset (alum-predict needs none)"
        )


def labels_of(folder: Path, split: str, examples: int) -> list[tuple[str, str]]:
    """The labels that are text, as :func:`~alum_fairseq.data.binarized.read_label_lines`.

    Raises:
        UsageError: there are none, or not as many as examples.
    """
    path = folder / f"{split}.label"
    require_labels(path, split)
    labels = read_label_lines(path)
    if len(labels) != examples:
        raise UsageError(f"{path} has {len(labels):,} labels for {examples:,} examples")
    return labels


def _lengths(dataset: Any) -> np.ndarray:
    sizes = dataset.sizes
    return np.asarray(sizes[0] if isinstance(sizes, list | tuple) else sizes)


@contextmanager
def _labelled_by(labels: Optional[list[Any]]) -> Iterator[None]:
    """Inside, fairseq's tasks take these labels, if any, for those that they read.

    Of splits that are combined (``train`` and ``train1``) fairseq 0.12 reads the first's alone. Can
    go when its ``sentence_ranking`` trains on such data.
    """
    init = RawLabelDataset.__init__
    if labels is not None:
        RawLabelDataset.__init__ = lambda self, _: init(self, labels)
    try:
        yield
    finally:
        RawLabelDataset.__init__ = init
