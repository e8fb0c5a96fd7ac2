"""The bridge to fairseq's RoBERTa: read the embeddings of a pass, and run it again from others.

The model is never copied or subclassed. While a pass is recorded, hooks take notes; while it
is re-run, the sentence encoder's ``forward_embedding`` and ``layers`` are stood in for. Both
are undone on leaving the context, whatever happens inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from fairseq import utils
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alum_fairseq.errors import UsageError

DROPOUTS = ("shared", "independent")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside fairseq's and torch's wrappers (legacy DDP, DDP, module proxies)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


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


def check_layer(model: nn.Module, layer: int) -> None:
    """Make sure that the encoder has a layer of this number.

    Raises:
        UsageError: it has not.
    """
    layers = len(sentence_encoder(model).layers)
    if not 0 <= layer < layers:
        raise UsageError(
            f"--alum-layer is {layer}: it must be from 0 (the embedding output) to {layers - 1} "
            f"(the input of the last of this model's {layers} layers)"
        )


def _adds_quantization_noise(module: nn.Module) -> bool:
    """Whether fairseq's ``--quant-noise-pq`` noises this module's weights in its next forward pass.

    It does so in place: the clean pass has done it for the update, and once more would be too much.
    """
    return module.training and any(
        hook.__module__ == quant_noise.__module__ for hook in module._forward_pre_hooks.values()
    )


class _NonReentrant(nn.Module):
    """A layer under activation checkpointing, made fit for ``torch.autograd.grad``.

    fairseq's own checkpointing (as torch's reentrant form) refuses to take part in it.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.layer.precheckpoint_forward, *args, use_reentrant=False, **kwargs)


@dataclass
class _Call:
    """What is kept of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Tensor | None = None  # B x T x D
    rng_state: dict[str, Any] | None = None
    layers: list[nn.Module] = field(default_factory=list)
    output: Tensor | None = None


def the_only_output(outputs: list[Tensor]) -> Tensor:
    """The logits of a criterion that calls the model once a batch.

    Raises:
        UsageError: it called the model more often, or not at all.
    """
    if len(outputs) != 1:
        raise UsageError(
            f"the criterion called the model {len(outputs)} times for one batch: ALUM must be told "
            "how the outputs make up one prediction (AlumCriterion.combine)"
        )
    return outputs[0]


class EncoderTap:
    """Where the perturbation enters a model: at the input of one of its encoder's layers.

    Args:
        model: what the criterion was handed: a ``roberta*`` model, wrapped or not.
        layer: 0 for the embedding output, N for the input of layer N.
        dropout: ``"shared"``: a re-run uses the dropout masks of the recorded pass;
            ``"independent"``: it draws its own.
        combine: makes the logits of what the model returned in the calls of a pass, in order.

    Raises:
        UsageError: the model is no RoBERTa, or it has no such layer.

    One update goes: record the clean pass, find a perturbation, re-run from there::

        tap = EncoderTap(model)
        with tap.recording():
            logits = model(src_tokens)[0]
        with tap.ascending():
            delta = adversary.perturb(tap.rerun, tap.embeddings, logits, tap.mask)
        perturbed_logits = tap.rerun(tap.embeddings + delta)

    A pass may call the model several times, such as once for each candidate answer: the
    embeddings of its calls are laid side by side along T, and perturbed together.

    With LayerDrop, a re-run uses the layers that the recorded pass used, whatever ``dropout`` is:
    both sides of the divergence are predictions of one sub-network.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: int = 0,
        dropout: str = "shared",
        combine: Callable[[list[Tensor]], Tensor] = the_only_output,
    ) -> None:
        if dropout not in DROPOUTS:
            raise UsageError(f"--alum-dropout is {dropout!r}: choose one of {', '.join(DROPOUTS)}")
        check_layer(model, layer)
        self._model = model
        self._encoder = sentence_encoder(model)
        self._layer = layer
        self._dropout = dropout
        self._combine = combine
        self._ascending = False
        self._calls: list[_Call] = []
        self._logits: Tensor | None = None

    @property
    def recorded(self) -> bool:
        """Whether the recorded pass came by the tap (LayerDrop may leave out all layers)."""
        return bool(self._calls) and all(call.hidden is not None for call in self._calls)

    @cached_property
    def embeddings(self) -> Tensor:
        """What entered the layer in the recorded pass, ``B x T x D``, in the graph of that pass."""
        assert self.recorded, "nothing was recorded"
        return _side_by_side([call.hidden for call in self._calls])

    @property
    def logits(self) -> Tensor:
        """What the recorded pass predicted, in the graph of that pass."""
        assert self._logits is not None, "nothing was recorded"
        return self._logits

    @cached_property
    def mask(self) -> Tensor:
        """True on tokens, false on padding, ``B x T``."""
        tokens = [
            call.kwargs["src_tokens"] if "src_tokens" in call.kwargs else call.args[0]
            for call in self._calls
        ]
        return _side_by_side(tokens).ne(self._encoder.padding_idx)

    def of_rows(self, rows: Tensor) -> EncoderTap:
        """A tap of the recorded pass as it would have been with these rows of the batch alone.

        For passes without dropout: a part of a batch draws other masks than the whole.

        Args:
            rows: their numbers, one for each row to have; one may come several times.
        """
        assert self.recorded, "nothing was recorded"
        tap = copy.copy(self)
        tap._forget()
        tap._logits = None
        tap._calls = [
            replace(
                call,
                args=tuple(_rows_of(value, rows) for value in call.args),
                kwargs={name: _rows_of(value, rows) for name, value in call.kwargs.items()},
                hidden=_rows_of(call.hidden, rows),
                output=None,
            )
            for call in self._calls
        ]
        return tap

    def _forget(self) -> None:
        """Let go of what was worked out from the recorded pass."""
        for name in ("embeddings", "mask"):
            vars(self).pop(name, None)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Take notes of the calls of the model that are made inside."""
        self._calls = []
        self._forget()
        with ExitStack() as stack:
            # Iterating over the list itself would draw LayerDrop's random numbers.
            for index, layer in enumerate(self._encoder.layers.children()):
                if index >= self._layer:
                    hook = layer.register_forward_pre_hook(self._note_layer)
                    stack.callback(hook.remove)
            for register, note in (
                (self._model.register_forward_pre_hook, self._note_call),
                (self._model.register_forward_hook, self._note_output),
            ):
                hook = register(note, with_kwargs=True)
                stack.callback(hook.remove)
            yield
        self._logits = self._combine([call.output for call in self._calls])

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append(_Call(args, kwargs))

    def _note_layer(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        call = self._calls[-1]
        if call.hidden is None:
            call.hidden = args[0].transpose(0, 1)  # fairseq's encoder is T x B x D inside
            # LayerDrop has drawn its layers by now, and the clean pass goes on from here.
            call.rng_state = utils.get_rng_state()
        call.layers.append(layer)

    def _note_output(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self._calls[-1].output = output[0]

    @contextmanager
    def replaying(self, embeddings: Tensor) -> Iterator[None]:
        """Inside, the model goes on from these embeddings instead of its inputs'.

        Args:
            embeddings: ``B x T x D``, for the batch that was recorded. Its calls are made again
                in their order.
        """
        encoder = self._encoder
        layers = encoder.layers
        resume_at = utils.get_rng_state() if self._dropout == "shared" else None
        lengths = [call.hidden.size(1) for call in self._calls]
        replayed = zip(self._calls, embeddings.split(lengths, dim=1), strict=True)

        def forward_embedding(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            call, part = next(replayed)
            encoder.layers = nn.ModuleList(self._layers_for_rerun(call))
            if resume_at is not None:
                utils.set_rng_state(call.rng_state)
            return part, part

        had_own = vars(encoder).get("forward_embedding")
        noised = [module for module in self._model.modules() if _adds_quantization_noise(module)]
        try:
            for module in noised:
                module.training = False
            encoder.forward_embedding = forward_embedding
            yield
        finally:
            for module in noised:
                module.training = True
            encoder.layers = layers
            del encoder.forward_embedding
            if had_own is not None:
                encoder.forward_embedding = had_own
            if resume_at is not None:
                # Else the next pass would meet the masks of this one again.
                utils.set_rng_state(resume_at)

    def _layers_for_rerun(self, call: _Call) -> list[nn.Module]:
        if not self._ascending:
            return call.layers
        return [
            _NonReentrant(layer) if hasattr(layer, "precheckpoint_forward") else layer
            for layer in call.layers
        ]

    @contextmanager
    def ascending(self) -> Iterator[None]:
        """Inside, re-runs serve ``torch.autograd.grad`` for the embeddings, and nothing else.

        No parameter needs a gradient, so nothing is kept to compute one.
        """
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._ascending = True
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            self._ascending = False
            for parameter in parameters:
                parameter.requires_grad_(True)

    def rerun(self, embeddings: Tensor) -> Tensor:
        """The logits of the recorded pass, had its embeddings been these.

        Args:
            embeddings: ``B x T x D``.

        Returns:
            Logits in the shape of :attr:`logits`.
        """
        with self.replaying(embeddings):
            return self._combine(
                [self._model(*call.args, **call.kwargs)[0] for call in self._calls]
            )


def _rows_of(value: Any, rows: Tensor) -> Any:
    """Of what has a row for each input, these rows; all else as it is."""
    return value[rows] if isinstance(value, Tensor) else value


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)
