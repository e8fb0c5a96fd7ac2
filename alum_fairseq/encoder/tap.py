"""The bridge to fairseq's RoBERTa: read the embeddings of a pass, and run it again from others.

The model is never copied or subclassed. While a pass is recorded, hooks take notes; while it
is run again, the sentence encoder's ``forward`` is stood in for. Both are undone on leaving the
context, whatever happens inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from alum_fairseq.adversarial.method import Graph
from alum_fairseq.encoder.modes import (
    forward_as,
    non_reentrant,
    padding_asked_once,
    parameters_frozen,
    unwrap,
    weights_fixed,
    with_changing_weights,
)
from alum_fairseq.encoder.random_state import random_state
from alum_fairseq.errors import UsageError
from alum_fairseq.problems.problem import Problem

WORDS, EMBEDDINGS = "words", "embeddings"


def sentence_encoder(model: nn.Module) -> nn.Module:
    """The transformer encoder of a ``roberta*`` model, whatever the model is wrapped in.

    Raises:
        UsageError: the model has no such encoder.
    """
    model = unwrap(model)
    encoder = getattr(getattr(model, "encoder", None), "sentence_encoder", None)
    if not (hasattr(encoder, "forward_embedding") and hasattr(encoder, "layers")):
        raise UsageError(
            f"ALUM cannot perturb a {type(model).__name__}: it needs a RoBERTa, so choose an "
            "--arch that begins with 'roberta' (or 'xlm')"
        )
    return encoder


def number_of_layers(model: nn.Module) -> int:
    """How many layers the sentence encoder has.

    Raises:
        UsageError: the model has no such encoder.
    """
    return len(sentence_encoder(model).layers)


@dataclass
class _Call:
    """What is kept of one call of the model.

    Attributes:
        entry: where the perturbation enters, ``B x T x D``: what the pass went on from.
        below: what entered there, in the graph of what lies below, where ``entry`` was cut from it.
        draw_again: random numbers as from that place.
        draw_layers_again: random numbers as from the first of ``layers``.
        layers: those above it that the pass used, in their order.
        padding: true on padding, ``B x T``, as the layers were handed it; None where there is none.
        predicted: the places whose words the head predicts, where it was told some; see `_pick`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entry: Tensor | None = None
    below: Tensor | None = None
    draw_again: Callable[[], None] | None = None
    draw_layers_again: Callable[[], None] | None = None
    layers: list[nn.Module] = field(default_factory=list)
    padding: Tensor | None = None
    predicted: tuple[Tensor, ...] | None = None
    output: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        return self.kwargs["src_tokens"] if "src_tokens" in self.kwargs else self.args[0]


class EncoderTap:
    """Where the perturbation enters a model.

    Args:
        model: what the criterion was handed: a ``roberta*`` model, wrapped or not.
        site: ``"words"``: the word embeddings, before positions and layer normalisation;
            ``"embeddings"``: the embedding output; ``"N"``: the input of layer N.
        dropout: ``"shared"``: a pass that is run again uses the dropout masks of the recorded one;
            ``"independent"``: it draws its own.
        logits: makes the logits of what the model returned in the calls of a pass, in order.

    Raises:
        UsageError: the model is no RoBERTa.

    One update goes: record the clean pass, find a perturbation, run it again from there::

        tap = EncoderTap(model)
        with tap.recording():
            logits = model(src_tokens)[0]
        objective = DivergenceFromClean(tap.rerun, logits, get_divergence("kl"))
        with tap.ascending():
            delta = adversary.perturb(objective, tap.embeddings, tap.mask)
        perturbed_logits = tap.rerun(tap.embeddings + delta)

    A pass may call the model several times, such as once for each candidate answer: the
    embeddings of its calls are laid side by side along T, and perturbed together.

    With LayerDrop, a pass that is run again uses the layers that the recorded one used, whatever
    ``dropout`` is: both sides of the divergence are predictions of one sub-network.
    """

    def __init__(
        self,
        model: nn.Module,
        site: str = EMBEDDINGS,
        dropout: str = "shared",
        logits: Callable[[Sequence[Tensor]], Tensor] | None = None,
    ) -> None:
        self._model = model
        self._encoder = sentence_encoder(model)
        self._site = site
        self._shared = dropout == "shared"
        self._logits_of = logits or Problem().logits
        self._calls: list[_Call] = []
        self._graph: Graph = "whole"
        self._logits: Tensor | None = None

    @property
    def recorded(self) -> bool:
        """Whether the recorded pass came by the tap (LayerDrop may leave out all layers)."""
        return bool(self._calls) and all(call.entry is not None for call in self._calls)

    @property
    def entries(self) -> tuple[Tensor, ...]:
        """What the calls of the recorded pass went on from, each ``B x T x D``."""
        return tuple(call.entry for call in self._calls)

    @property
    def below(self) -> tuple[Tensor, ...]:
        """The same in the graph of what lies below; empty where nothing was cut."""
        return tuple(call.below for call in self._calls if call.below is not None)

    @cached_property
    def embeddings(self) -> Tensor:
        """The entries side by side, ``B x T x D``."""
        assert self.recorded, "nothing was recorded"
        return _side_by_side(self.entries)

    @property
    def logits(self) -> Tensor:
        """What the recorded pass predicted, in the graph of that pass."""
        assert self._logits is not None, "nothing was recorded"
        return self._logits

    @cached_property
    def mask(self) -> Tensor:
        """True on tokens, false on padding, ``B x T``."""
        tokens = _side_by_side([call.tokens for call in self._calls])
        return tokens.ne(self._encoder.padding_idx)

    @cached_property
    def _changing(self) -> list[nn.Module]:
        return with_changing_weights(self._model)

    def of_rows(self, rows: Tensor) -> EncoderTap:
        """A tap of the recorded pass as it would have been with these rows of the batch alone.

        For passes without dropout: a part of a batch draws other masks than the whole.

        Args:
            rows: their numbers, one for each row to have; one may come several times.
        """
        assert self.recorded, "nothing was recorded"
        tap = copy.copy(self)
        tap._forget_derived()
        tap._logits = None
        tap._calls = [
            replace(
                call,
                args=tuple(_rows_of(value, rows) for value in call.args),
                kwargs={name: _rows_of(value, rows) for name, value in call.kwargs.items()},
                entry=_rows_of(call.entry, rows),
                padding=_rows_of(call.padding, rows),
                predicted=None,
                below=None,
                output=None,
            )
            for call in self._calls
        ]
        return tap

    def _forget_derived(self) -> None:
        for name in ("embeddings", "mask"):
            vars(self).pop(name, None)

    @contextmanager
    def recording(self, graph: Graph = "whole") -> Iterator[None]:
        """Take notes of the calls of the model that are made inside.

        Args:
            graph: ``"whole"``: that of the pass is as it would be; ``"above"``: it is cut at the
                tap, so that :attr:`entries` are leaves; ``"none"``: there is none above the tap.
        """
        self._calls, self._logits, self._graph = [], None, graph
        self._forget_derived()
        with ExitStack() as stack:
            for hook in self._hooks():
                stack.callback(hook.remove)
            stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
            stack.enter_context(padding_asked_once(self._encoder))
            yield
        self._logits = self._logits_of([call.output for call in self._calls])

    def _hooks(self) -> Iterator[Any]:
        encoder, model = self._encoder, self._model
        # Iterating over the list itself would draw LayerDrop's random numbers.
        layers = list(encoder.layers.children())
        if self._site == WORDS:
            yield encoder.embed_tokens.register_forward_hook(self._note_words)
        first = int(self._site) if self._site.isdecimal() else 0
        for layer in layers[first:]:
            yield layer.register_forward_pre_hook(self._note_layer, with_kwargs=True)
        yield model.register_forward_pre_hook(self._note_call, with_kwargs=True)
        yield model.register_forward_hook(self._note_output, with_kwargs=True)

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append(_Call(args, kwargs))

    def _note_words(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self._enter(output)

    def _note_layer(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self._calls[-1]
        call.layers.append(layer)
        call.padding = kwargs["encoder_padding_mask"]
        if len(call.layers) > 1:
            return None
        # LayerDrop has drawn its layers by now.
        call.draw_layers_again = random_state(args[0].device)
        if call.entry is not None:
            return None
        # fairseq's encoder is T x B x D inside.
        return (self._enter(args[0].transpose(0, 1)).transpose(0, 1), *args[1:]), kwargs

    def _enter(self, states: Tensor) -> Tensor:
        """Note what comes by the tap; returns what the pass goes on from."""
        call = self._calls[-1]
        call.entry = states
        if self._graph != "whole":
            call.entry, call.below = states.detach().requires_grad_(), states
        call.draw_again = random_state(states.device)
        if self._graph == "none":
            torch.set_grad_enabled(False)
        return call.entry

    def _note_output(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self._calls[-1].output = output[0]
        if self._graph == "none":
            torch.set_grad_enabled(True)

    @contextmanager
    def replaying(self, embeddings: Tensor) -> Iterator[None]:
        """Inside, the model goes on from these embeddings instead of its inputs'.

        Args:
            embeddings: ``B x T x D``, for the batch that was recorded. Its calls are made again
                in their order.
        """
        resume = random_state(embeddings.device) if self._shared else None
        lengths = [call.entry.size(1) for call in self._calls]
        replayed = zip(self._calls, embeddings.split(lengths, dim=1), strict=True)
        call: _Call | None = None

        def forward(tokens: Tensor, *_: Any, **__: Any) -> dict[str, list[Tensor]]:
            nonlocal call
            call, states = next(replayed)
            return {"encoder_out": [self._go_on(call, states)], "encoder_states": []}

        def pick(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            return _pick(call, *args)

        head = unwrap(self._model).encoder.lm_head
        try:
            with (
                weights_fixed(self._changing),
                forward_as(self._encoder, forward),
                head.register_forward_pre_hook(pick),
            ):
                yield
        finally:
            if resume is not None:
                # Else the next pass would meet the masks of this one again.
                resume()

    def _go_on(self, call: _Call, states: Tensor) -> Tensor:
        """The encoder's output, ``T x B x D``, from what entered at the tap.

        As fairseq's encoder computes it, which asks in every layer whether there is padding, and
        so waits for the GPU.
        """
        encoder = self._encoder
        if self._site == WORDS:
            self._share(call.draw_again)
            states, _ = encoder.forward_embedding(call.tokens, states)
            states = states * call.tokens.ne(encoder.padding_idx).unsqueeze(-1)
        self._share(call.draw_layers_again)
        states = states.transpose(0, 1)
        for layer in call.layers:
            states = layer(states, encoder_padding_mask=call.padding)
        return states if encoder.layer_norm is None else encoder.layer_norm(states)

    def _share(self, draw_again: Callable[[], None] | None) -> None:
        if self._shared and draw_again is not None:
            draw_again()

    @contextmanager
    def ascending(self) -> Iterator[None]:
        """Inside, passes serve ``torch.autograd.grad`` for the embeddings, and nothing else."""
        with parameters_frozen(self._model), non_reentrant(self._encoder):
            yield

    def rerun(self, embeddings: Tensor) -> Tensor:
        """The logits of the recorded pass, had its embeddings been these.

        Args:
            embeddings: ``B x T x D``.

        Returns:
            Logits in the shape of :attr:`logits`.
        """
        with self.replaying(embeddings):
            outputs = [self._model(*call.args, **call.kwargs)[0] for call in self._calls]
        return self._logits_of(outputs)


def _pick(
    call: _Call, features: Tensor, masked: Tensor | None = None
) -> tuple[Tensor, None] | None:
    """Hand a head the masked places alone, found once: an index by a mask waits for the GPU."""
    if masked is None:
        return None
    if call.predicted is None:
        call.predicted = masked.nonzero(as_tuple=True)
    return features[call.predicted], None


def _rows_of(value: Any, rows: Tensor) -> Any:
    """Of what has a row for each input, these rows; all else as it is."""
    return value[rows] if isinstance(value, Tensor) else value


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
