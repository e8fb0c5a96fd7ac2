"""The bridge to fairseq's RoBERTa: read the embeddings of a pass, and run it again from others.

The model is never copied or subclassed. While a pass is recorded, hooks take notes; while it
is re-run, the sentence encoder's ``forward_embedding`` and ``layers`` are stood in for. Both
are undone on leaving the context, whatever happens inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from fairseq import utils
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.checkpoint import checkpoint

from alum_fairseq.adversarial.adversary import Split
from alum_fairseq.encoder.draws import Draws
from alum_fairseq.errors import UsageError

DROPOUTS = ("shared", "independent")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside fairseq's and torch's wrappers (legacy DDP, DDP, module proxies)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def shown_to_wrappers(model: nn.Module, loss: Tensor) -> Tensor:
    """Pass a loss through a model's wrappers as if it had come of the model's forward pass.

    torch's DDP looks at what that returns for the parameters whose gradients it is to wait for.

    Args:
        model: wrapped or not.
        loss: computed from the model inside, past its wrappers.
    """
    inner = unwrap(model)
    if inner is model:
        return loss
    inner.forward = lambda loss: loss
    try:
        return model(loss)
    finally:
        del inner.forward


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


def check_layer(model: nn.Module, layer: int, step_layers: int = 0) -> None:
    """Make sure that the encoder has a layer of this number, and enough of them above it.

    Args:
        model: a model, wrapped or not.
        layer: the layer that the perturbation enters.
        step_layers: how many layers from there the later ascent steps run; 0 for all.

    Raises:
        UsageError: it has not.
    """
    layers = len(sentence_encoder(model).layers)
    if not 0 <= layer < layers:
        raise UsageError(
            f"--alum-layer is {layer}: it must be from 0 (the embedding output) to {layers - 1} "
            f"(the input of the last of this model's {layers} layers)"
        )
    above = layers - layer - 1
    if not 0 <= step_layers <= above:
        raise UsageError(
            f"--alum-step-layers is {step_layers}: it must be from 0 (all layers) to {above}, "
            f"one less than this model has from layer {layer} on"
        )


def check_low_memory(model: nn.Module) -> None:
    """Make sure that a pass of the model can be run again as it was.

    Raises:
        UsageError: it cannot: ``--quant-noise-pq`` noises weights in place, by random numbers in
            between those of dropout.
    """
    if any(map(_is_noised, unwrap(model).modules())):
        raise UsageError(
            "--alum-memory is low: it runs the clean pass twice, and --quant-noise-pq would noise "
            "the weights in both: leave one of the two away"
        )


def _is_noised(module: nn.Module) -> bool:
    """Whether fairseq's ``--quant-noise-pq`` noises this module's weights in every forward pass."""
    hooks = module._forward_pre_hooks.values()
    return any(hook.__module__ == quant_noise.__module__ for hook in hooks)


def _changes_itself(module: nn.Module) -> bool:
    """Whether this module's weights change in its next forward pass.

    By fairseq's ``--quant-noise-pq``, which noises them in place, or by spectral normalisation
    (``--spectral-norm-classification-head``), which refines its estimate. The clean pass has done
    it for the update; once more would be too much, and the passes would differ by more than the
    perturbation.
    """
    hooks = module._forward_pre_hooks.values()
    normalized = any(isinstance(hook, SpectralNorm) for hook in hooks)
    return module.training and (normalized or _is_noised(module))


@contextmanager
def unchanging(model: nn.Module) -> Iterator[None]:
    """Inside, a pass leaves the model's weights as an earlier one found them (or made them)."""
    changing = [module for module in model.modules() if _changes_itself(module)]
    try:
        for module in changing:
            module.training = False
        yield
    finally:
        for module in changing:
            module.training = True


def _is_checkpointed(module: nn.Module) -> bool:
    """Whether fairseq's ``--checkpoint-activations`` wrapped this module."""
    return hasattr(module, "precheckpoint_forward")


@dataclass
class _Call:
    """What is kept of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Tensor | None = None  # B x T x D
    rng_state: dict[str, Any] | None = None
    middle: Tensor | None = None  # the input of the upper part, B x T x D
    middle_rng_state: dict[str, Any] | None = None
    drawn: int = 0  # how many random tensors had been drawn at ``hidden``, and at ``middle``
    drawn_at_middle: int = 0
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
        step_layers: where the model is cut for :attr:`network`: after so many of the layers from
            ``layer`` on; 0 for nowhere.
        keep_masks: keep the dropout masks of the recorded pass (a byte an element) instead of
            drawing them again in each re-run that shares them. Where it pays, on a CPU.
        combine: makes the logits of what the model returned in the calls of a pass, in order.

    Raises:
        UsageError: the model is no RoBERTa, or it has no such layer.

    One update goes: record the clean pass, find a perturbation, re-run from there::

        tap = EncoderTap(model)
        with tap.recording():
            logits = model(src_tokens)[0]
        with tap.ascending():
            delta = adversary.perturb(tap.network, tap.embeddings, logits, tap.mask)
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
        step_layers: int = 0,
        keep_masks: bool = True,
    ) -> None:
        if dropout not in DROPOUTS:
            raise UsageError(f"--alum-dropout is {dropout!r}: choose one of {', '.join(DROPOUTS)}")
        check_layer(model, layer, step_layers)
        self._model = model
        self._encoder = sentence_encoder(model)
        self._layer = layer
        self._step_layers = step_layers
        self._dropout = dropout
        self._combine = combine
        self._keep_masks = keep_masks
        self._draws: Draws | None = None
        self._calls: list[_Call] = []
        self._logits: Tensor | None = None

    @property
    def model(self) -> nn.Module:
        """What the criterion was handed."""
        return self._model

    @property
    def training(self) -> bool:
        """Whether the model is being trained."""
        return self._model.training

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
    def hidden(self) -> Tensor | None:
        """Where the model is cut, what passed from the lower to the upper part, ``B x T x D``."""
        if not self._cut:
            return None
        return _side_by_side([call.middle for call in self._calls])

    @property
    def network(self) -> Callable[[Tensor], Tensor] | Split:
        """The model from the tap on, as an adversary takes it: in two parts where it is cut."""
        return Split(self._rerun_lower, self._rerun_upper) if self._cut else self.rerun

    @property
    def _cut(self) -> bool:
        # LayerDrop may have left too few layers.
        return self._step_layers > 0 and all(call.middle is not None for call in self._calls)

    @property
    def differentiable(self) -> bool:
        """Whether gradients can be had from the graph of the recorded pass before its own backward.

        fairseq's ``--checkpoint-activations`` refuses it; and of several calls :attr:`embeddings`
        is a copy, laid side by side.
        """
        return len(self._calls) == 1 and not any(map(_is_checkpointed, self._encoder.modules()))

    def release(self) -> None:
        """Let go of the graph of the recorded pass; the numbers stay."""
        for call in self._calls:
            call.hidden, call.output = call.hidden.detach(), None
            call.middle = None if call.middle is None else call.middle.detach()
        self._logits = self.logits.detach()
        self._forget_derived()

    @property
    def logits(self) -> Tensor:
        """What the recorded pass predicted, in the graph of that pass."""
        assert self._logits is not None, "nothing was recorded"
        return self._logits

    @cached_property
    def mask(self) -> Tensor:
        """True on tokens, false on padding, ``B x T``."""
        tokens = _side_by_side([_tokens(call) for call in self._calls])
        return tokens.ne(self._encoder.padding_idx)

    def of_rows(self, rows: Tensor) -> EncoderTap:
        """A tap of the recorded pass as it would have been with these rows of the batch alone.

        For passes without dropout: a part of a batch draws other masks than the whole.

        Args:
            rows: their numbers, one for each row to have; one may come several times.
        """
        assert self.recorded, "nothing was recorded"
        tap = copy.copy(self)
        tap._forget_derived()
        tap._logits, tap._draws = None, None
        tap._calls = [
            replace(
                call,
                args=tuple(_rows_of(value, rows) for value in call.args),
                kwargs={name: _rows_of(value, rows) for name, value in call.kwargs.items()},
                hidden=_rows_of(call.hidden, rows),
                middle=_rows_of(call.middle, rows),
                output=None,
            )
            for call in self._calls
        ]
        return tap

    def forget(self) -> None:
        """Let go of all that was recorded."""
        self._calls, self._logits, self._draws = [], None, None
        self._forget_derived()

    def _forget_derived(self) -> None:
        for name in ("embeddings", "mask"):
            vars(self).pop(name, None)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Take notes of the calls of the model that are made inside."""
        self.forget()
        with ExitStack() as stack:
            if self._can_keep_masks:
                self._draws = Draws()
                stack.enter_context(self._draws.recording())
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
        if self._draws is not None and not self._draws.complete:
            self._draws = None
        self._logits = self._combine([call.output for call in self._calls])

    @property
    def _can_keep_masks(self) -> bool:
        # A checkpointed module's second forward pass, in the backward pass, draws from the state of
        # the generator; a noised one draws in the recorded pass alone.
        return (
            self._keep_masks
            and self._dropout == "shared"
            and self.training
            and next(self._model.parameters()).device.type == "cpu"
            and not any(_is_checkpointed(m) or _is_noised(m) for m in self._model.modules())
        )

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append(_Call(args, kwargs))

    def _note_layer(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = self._calls[-1]
        position = len(call.layers)
        call.layers.append(layer)
        if position not in (0, self._step_layers):
            return None
        # fairseq's encoder is T x B x D inside. The pass goes on from what is kept, so that there
        # is a gradient for it.
        states, rng_state = args[0].transpose(0, 1), utils.get_rng_state()
        drawn = self._draws.count if self._draws else 0
        if position == 0:
            # LayerDrop has drawn its layers by now, and the clean pass goes on from here.
            call.hidden, call.rng_state, call.drawn = states, rng_state, drawn
        else:
            call.middle, call.middle_rng_state, call.drawn_at_middle = states, rng_state, drawn
        return states.transpose(0, 1), *args[1:]

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
        with self._replaying(embeddings, slice(None)):
            yield

    @contextmanager
    def _replaying(self, embeddings: Tensor, part: slice) -> Iterator[None]:
        """As :meth:`replaying`, with a part of the layers."""
        encoder = self._encoder
        layers = encoder.layers
        draws = self._draws
        drawing_again = self._dropout == "shared" and draws is None
        resume_at = utils.get_rng_state() if drawing_again else None
        lengths = [call.hidden.size(1) for call in self._calls]
        replayed = zip(self._calls, embeddings.split(lengths, dim=1), strict=True)

        def forward_embedding(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            call, states = next(replayed)
            encoder.layers = nn.ModuleList(call.layers[part])
            if draws is not None:
                draws.go_to(call.drawn_at_middle if part.start else call.drawn)
            if resume_at is not None:
                utils.set_rng_state(call.middle_rng_state if part.start else call.rng_state)
            return states, states

        had_own = vars(encoder).get("forward_embedding")
        try:
            with unchanging(self._model), draws.replaying() if draws is not None else nullcontext():
                encoder.forward_embedding = forward_embedding
                yield
        finally:
            encoder.layers = layers
            del encoder.forward_embedding
            if had_own is not None:
                encoder.forward_embedding = had_own
            if resume_at is not None:
                # Else the next pass would meet the masks of this one again.
                utils.set_rng_state(resume_at)

    @contextmanager
    def fit_for_grad(self) -> Iterator[None]:
        """Inside, passes are made whose graphs ``torch.autograd.grad`` can go through.

        fairseq's own activation checkpointing (as torch's reentrant form) refuses to: torch's
        other form stands in for it.
        """
        forwards = {m: m.forward for m in self._encoder.modules() if _is_checkpointed(m)}
        try:
            for module in forwards:
                module.forward = partial(
                    checkpoint, module.precheckpoint_forward, use_reentrant=False
                )
            yield
        finally:
            for module, forward in forwards.items():
                module.forward = forward

    @contextmanager
    def ascending(self, precision: torch.dtype | None = None) -> Iterator[None]:
        """Inside, re-runs serve ``torch.autograd.grad`` for the embeddings, and nothing else.

        No parameter needs a gradient, so nothing is kept to compute one.

        Args:
            precision: the type to autocast to; None: as the recorded pass.
        """
        device = next(self._model.parameters()).device.type
        autocast = torch.autocast(device, precision) if precision else nullcontext()
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            with autocast, self.fit_for_grad():
                yield
        finally:
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
            return self._logits_again()

    def _rerun_lower(self, embeddings: Tensor) -> Tensor:
        with self._replaying(embeddings, slice(0, self._step_layers)):
            states = [
                self._encoder(_tokens(call), return_all_hiddens=True)["encoder_states"][-1]
                for call in self._calls
            ]
        return _side_by_side([state.transpose(0, 1) for state in states])

    def _rerun_upper(self, hidden: Tensor) -> Tensor:
        with self._replaying(hidden, slice(self._step_layers, None)):
            return self._logits_again()

    def _logits_again(self) -> Tensor:
        return self._combine([self._model(*call.args, **call.kwargs)[0] for call in self._calls])


def _tokens(call: _Call) -> Tensor:
    return call.kwargs["src_tokens"] if "src_tokens" in call.kwargs else call.args[0]


def _rows_of(value: Any, rows: Tensor) -> Any:
    """Of what has a row for each input, these rows; all else as it is."""
    return value[rows] if isinstance(value, Tensor) else value


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)
