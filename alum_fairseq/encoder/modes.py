"""What must hold while a model is run again: no weights that move, no graph that is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside fairseq's and torch's wrappers (legacy DDP, DDP, module proxies)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, this is what a module computes; its hooks are as they are."""
    own = vars(module).get("forward")
    try:
        module.forward = forward
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def through_wrappers(model: nn.Module, loss: Tensor) -> Tensor:
    """Pass a loss through a model's wrappers as if it had come of the model's forward pass.

    torch's DDP looks at what that returns for the parameters whose gradients it is to wait for.

    Args:
        model: wrapped or not.
        loss: computed from the model inside, past its wrappers.
    """
    inner = unwrap(model)
    if inner is model:
        return loss
    with forward_as(inner, lambda loss: loss):
        return model(loss)


def has_quant_noise(module: nn.Module) -> bool:
    """Whether fairseq's ``--quant-noise-pq`` changes this module's weights in every pass."""
    hooks = module._forward_pre_hooks.values()
    return any(hook.__module__ == quant_noise.__module__ for hook in hooks)


def _changes_weights(module: nn.Module) -> bool:
    """Whether this module's weights change in its next forward pass.

    By fairseq's ``--quant-noise-pq``, which noises them in place, or by spectral normalisation
    (``--spectral-norm-classification-head``), which refines its estimate. The clean pass has done
    it for the update; once more would be too much, and the passes would differ by more than the
    perturbation.
    """
    hooks = module._forward_pre_hooks.values()
    normalized = any(isinstance(hook, SpectralNorm) for hook in hooks)
    return module.training and (normalized or has_quant_noise(module))


def with_changing_weights(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights the next pass would change."""
    return [module for module in model.modules() if _changes_weights(module)]


@contextmanager
def weights_fixed(changing: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, a pass leaves the weights of these as an earlier one found them (or made them)."""
    try:
        for module in changing:
            module.training = False
        yield
    finally:
        for module in changing:
            module.training = True


class _AsOne(nn.Module):
    """Layers that look like one to fairseq's encoder."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, encoder_padding_mask=encoder_padding_mask)
        return x


@contextmanager
def padding_asked_once(encoder: nn.Module) -> Iterator[None]:
    """Inside, a pass asks once whether there is padding; fairseq's asks before every layer.

    Each time the host would wait for the GPU.
    """
    layers, forward = encoder.layers, encoder.forward

    def asking_once(*args: Any, **kwargs: Any) -> Any:
        try:
            encoder.layers = nn.ModuleList([_AsOne(layers)])
            return forward(*args, **kwargs)
        finally:
            encoder.layers = layers

    with forward_as(encoder, asking_once):
        yield


def is_checkpointed(module: nn.Module) -> bool:
    """Whether fairseq's ``--checkpoint-activations`` wrapped this module."""
    return hasattr(module, "precheckpoint_forward")


@contextmanager
def non_reentrant(model: nn.Module) -> Iterator[None]:
    """Inside, passes are made whose graphs ``torch.autograd.grad`` can go through.

    fairseq's own activation checkpointing (as torch's reentrant form) refuses to: torch's
    other form stands in for it.
    """
    with ExitStack() as stack:
        for module in filter(is_checkpointed, model.modules()):
            forward = partial(checkpoint, module.precheckpoint_forward, use_reentrant=False)
            stack.enter_context(forward_as(module, forward))
        yield


@contextmanager
def parameters_frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter needs a gradient, so that nothing is kept to compute one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def recomputed(
    run: Callable[[], Result],
    model: nn.Module,
    again: Callable[[], AbstractContextManager[None]],
) -> Result:
    """Run a pass whose activations are not kept, but computed again in the backward pass.

    Args:
        run: runs the pass.
        model: that is run, without wrappers, which do not stand a pass amid the backward pass.
        again: makes the context inside which the second pass is made.

    Returns:
        What the first pass returned.
    """

    @contextmanager
    def second() -> Iterator[None]:
        with non_reentrant(model), weights_fixed(with_changing_weights(model)), again():
            yield

    # The parameter tells torch whose random numbers and autocast to restore.
    return checkpoint(
        lambda _: run(),
        next(model.parameters()),
        use_reentrant=False,
        context_fn=lambda: (non_reentrant(model), second()),
    )
