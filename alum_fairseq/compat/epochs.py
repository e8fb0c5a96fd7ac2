"""Masks and random crops are new in every epoch, and the same for any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from alum_fairseq.compat.ours import trains_ours


def tell_all_parts_the_epoch() -> None:
    """Let every part of the training data know the epoch, wherever it is loaded.

    What fairseq 0.12 draws at random for an example depends on the seed, the epoch and the
    example. But the epoch does not reach all that draw, and then epochs are alike:

    - It keeps the loader's worker processes, which have copies of the data set as it was in the
      first epoch. Here each epoch has workers of its own.
    - It caches the last examples without regard to the epoch (``LRUCacheDataset``). Here the cache
      is emptied when an epoch begins.
    - A ``TokenBlockDataset`` does not hand the epoch on to a random crop inside it. Here each part
      is told.

    Can go when ``masked_lm`` of stock fairseq masks no block alike in two epochs, with workers and
    without.
    """
    from fairseq.trainer import Trainer

    get_iterator, begin_epoch = Trainer.get_train_iterator, Trainer.begin_epoch

    def get_train_iterator(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        batches = get_iterator(self, *args, **kwargs)
        if trains_ours(self):
            batches.persistent_workers = False
        return batches

    def begin_and_tell(self: Trainer, epoch: int) -> None:
        if trains_ours(self):
            _tell(self.task.dataset(self.cfg.dataset.train_subset), epoch)
        begin_epoch(self, epoch)

    Trainer.get_train_iterator = get_train_iterator
    Trainer.begin_epoch = begin_and_tell


def _tell(dataset: Dataset, epoch: int) -> None:
    from fairseq.data import LRUCacheDataset

    for part in _parts(dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    LRUCacheDataset.__getitem__.cache_clear()


def _parts(dataset: Dataset) -> Iterator[Dataset]:
    """A data set and those that it wraps, in attributes, lists and dictionaries."""
    yield dataset
    for value in vars(dataset).values():
        values = value.values() if isinstance(value, dict) else value
        for each in values if isinstance(value, dict | list | tuple) else [value]:
            if isinstance(each, Dataset):
                yield from _parts(each)
