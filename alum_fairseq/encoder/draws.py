"""The random numbers of a pass, kept so that later passes use them without drawing them again.

On a CPU dropout draws its masks one number after the other, which takes a tenth of an encoder's
forward pass. (A GPU draws them in no time, and repeats them from the state of its generator.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What fills a tensor with numbers that depend on nothing but its shape.
_BERNOULLI = torch.ops.aten.bernoulli_.float
_FILLING = (_BERNOULLI, torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)


class Draws:
    """Random numbers in the order in which a pass drew them.

    One goes: record a pass, noting :attr:`count` where a later one is to begin; then, any number
    of times, go to that place and run it again::

        draws = Draws()
        with draws.recording():
            first = torch.dropout(x, 0.1, train=True)
        with draws.replaying():
            draws.go_to(0)
            second = torch.dropout(y, 0.1, train=True)  # with the same mask
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Callable, Tensor]] = []
        self._next = 0
        self._complete = True

    @property
    def complete(self) -> bool:
        """Whether all that was drawn can be repeated: it was noise, not samples of something."""
        return self._complete

    @property
    def count(self) -> int:
        """How many tensors were drawn up to now."""
        return len(self._kept)

    def go_to(self, place: int) -> None:
        """Repeat from here on what was drawn from the ``place``-th tensor on."""
        self._next = place

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, keep what is drawn."""
        with _Watching(self._keep):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Inside, give what was kept; the generator is left alone.

        Raises:
            RuntimeError: another kind of random numbers is drawn than was kept in this place, in
                another shape, or more of them.
        """
        with _Watching(self._repeat):
            yield

    def _keep(self, draw: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        drawn = draw(*args, **kwargs)
        if draw not in _FILLING:
            self._complete = False
        elif self._complete:
            self._kept.append((draw, drawn.bool() if draw is _BERNOULLI else drawn.clone()))
        return drawn

    def _repeat(self, draw: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        kept, values = self._kept[self._next] if self._next < len(self._kept) else (None, None)
        if draw is not kept or args[0].shape != values.shape:
            raise RuntimeError(
                f"a pass drew {draw} where the recorded one drew {kept}: it cannot be repeated"
            )
        self._next += 1
        return args[0].copy_(values)


class _Watching(TorchDispatchMode):
    """Hands what draws random numbers to somebody else."""

    def __init__(self, instead: Callable[[Callable, Sequence[Any], Mapping[str, Any]], Any]):
        super().__init__()
        self._instead = instead

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._instead(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
