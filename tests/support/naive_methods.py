"""Every method as its paper writes it: losses on plain graphs, added up, one backward pass.

Nothing here is shared with the engine. The numbers are written out once more, from the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# From a perturbation, ``B x T x D``, or None, to the task's loss and the logits.
Run = Callable[[Tensor | None], tuple[Tensor, Tensor]]


@dataclass
class Batch:
    """A batch on a model.

    Attributes:
        run: a pass, with all parameters in its graph.
        embeddings: where the perturbation enters, ``B x T x D``.
        mask: true on tokens, ``B x T``.
        noise: draws a random tensor like the embeddings, by the name of a function of torch.
        numbers: whether the logits are numbers, rather than those of a distribution.
        weights: of the predictions.
        momentum: logits of SMART's momentum model.
        least_noise: size of the default random start, in multiples of the root mean square.
    """

    run: Run
    embeddings: Tensor
    mask: Tensor
    noise: Callable[[str], Tensor]
    numbers: bool = False
    weights: Tensor | None = None
    momentum: Tensor | None = None
    least_noise: float = 0.01

    def loss(self, r: Tensor | None = None) -> Tensor:
        return self.run(r)[0]

    def logits(self, r: Tensor | None = None) -> Tensor:
        return self.run(r)[1]

    @property
    def keep(self) -> Tensor:
        return self.mask.unsqueeze(-1).to(self.embeddings.dtype)

    def normal(self) -> Tensor:
        return self.noise("randn") * self.keep

    def uniform(self) -> Tensor:
        """Between -1 and 1."""
        return (2 * self.noise("rand") - 1) * self.keep

    def rms(self) -> Tensor:
        """Of each sentence's embeddings, ``B x 1 x 1``."""
        sizes = []
        for states, mask in zip(self.embeddings, self.mask, strict=True):
            numbers = states[mask]
            sizes.append(numbers.pow(2).mean().sqrt() if mask.any() else states.new_zeros(()))
        return torch.stack(sizes).view(-1, 1, 1)

    def coordinates(self) -> Tensor:
        """How many numbers each sentence has, ``B x 1 x 1``."""
        counts = self.mask.sum(1).clamp_min(1) * self.embeddings.shape[-1]
        return counts.view(-1, 1, 1).to(self.embeddings.dtype)

    # ------------------------------------------------------------------ divergences

    def d(self, p: Tensor, q: Tensor) -> Tensor:
        """``KL(P || Q)``; of numbers, the squared difference. Summed over the predictions."""
        if self.numbers:
            return (p - q).pow(2).sum()
        log_p, log_q = (x.to(_at_least_float(x)).log_softmax(-1) for x in (p, q))
        difference = log_p - log_q
        # sum P log(P/Q), plus sum Q - sum P, which is zero: small values lose no digits.
        terms = (log_p.exp() * (difference + torch.expm1(-difference))).sum(-1)
        return terms.sum() if self.weights is None else (terms * self.weights).sum()

    def symmetric(self, p: Tensor, q: Tensor) -> Tensor:
        return self.d(p, q) if self.numbers else self.d(p, q) + self.d(q, p)

    def consistency(self, adversarial: Tensor, clean: Tensor) -> Tensor:
        """ALUM's two terms; of numbers, one."""
        if self.numbers:
            return self.d(adversarial, clean)
        return self.d(adversarial, clean.detach()) + self.d(clean, adversarial.detach())

    # ------------------------------------------------------------------ geometry

    def gradient(self, function: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
        r = r.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(r), r)
        return gradient.to(_at_least_float(gradient)) * self.keep


def _at_least_float(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def length(x: Tensor) -> Tensor:
    """Of each sentence, ``B x 1 x 1``."""
    return torch.stack([sentence.norm() for sentence in x]).view(-1, 1, 1)


def largest(x: Tensor) -> Tensor:
    """Absolute number of each token, ``B x T x 1``."""
    return x.abs().max(-1, keepdim=True).values


def divided(x: Tensor, size: Tensor) -> Tensor:
    return torch.where(size > 0, x / size, 0.0)


def shortened(x: Tensor, most: Tensor) -> Tensor:
    return torch.where(length(x) > most, divided(x, length(x)) * most, x)


# ---------------------------------------------------------------------- ALUM


def paper(batch: Batch, alpha: float) -> Tensor:
    """Liu et al. 2020 (arXiv 2004.08994), Algorithm 1; section 4.2 for the numbers."""
    clean = batch.logits().detach()
    delta = 1e-5 * batch.normal()
    g = batch.gradient(lambda r: batch.d(batch.logits(r), clean), delta)
    delta = (delta + 1e-3 * g).clamp(-1e-5, 1e-5)
    return batch.loss() + alpha * batch.consistency(batch.logits(delta), batch.logits())


def reference(batch: Batch, alpha: float) -> Tensor:
    """As :func:`paper`, but for the projection of its released code."""
    clean = batch.logits().detach()
    delta = 1e-5 * batch.normal()
    g = batch.gradient(lambda r: batch.d(batch.logits(r), clean), delta)
    delta = delta + 1e-3 * g
    delta = delta / (largest(delta) + 1e-6)
    return batch.loss() + alpha * batch.consistency(batch.logits(delta), batch.logits())


def calibrated(batch: Batch, alpha: float) -> Tensor:
    """A step of the root mean square, along the gradient's direction; all but 0.03 of it cut."""
    clean = batch.logits().detach()
    unit = batch.rms() * batch.coordinates().sqrt()
    delta = batch.least_noise * batch.rms() * batch.normal()
    g = batch.gradient(lambda r: batch.d(batch.logits(r), clean), delta)
    delta = delta + unit * divided(g, length(g))
    delta = 0.03 * unit * divided(delta, length(delta) + 1e-6 * unit)
    return batch.loss() + alpha * batch.consistency(batch.logits(delta), batch.logits())


# ---------------------------------------------------------------------- others that keep to clean


def vat(batch: Batch, alpha: float) -> Tensor:
    """Miyato et al. 2017 (arXiv 1605.07725), equations 3 and 4: one power iteration."""
    clean = batch.logits().detach()
    d = batch.least_noise * batch.rms() * batch.normal()
    g = batch.gradient(lambda r: batch.d(clean, batch.logits(r)), d)
    r = 0.016 * batch.rms() * batch.coordinates().sqrt() * divided(g, length(g))
    return batch.loss() + alpha * batch.d(clean, batch.logits(r))


def r3f(batch: Batch, alpha: float) -> Tensor:
    """Aghajanyan et al. 2020 (arXiv 2008.03156), equations 3 to 5."""
    z = 1e-5 * batch.uniform()
    return batch.loss() + alpha * batch.symmetric(batch.logits(z), batch.logits())


def smart(batch: Batch, alpha: float) -> Tensor:
    """Jiang et al. 2020 (arXiv 1911.03437), equations 1 to 5, Algorithm 1."""
    clean = batch.logits().detach()
    x = 1e-5 * batch.normal()
    g = batch.gradient(lambda r: batch.symmetric(batch.logits(r), clean), x)
    x = (x + 1e-3 * divided(g, largest(g))).clamp(-1e-5, 1e-5)
    added = batch.symmetric(batch.logits(x), batch.logits())
    if batch.momentum is not None:
        added = added + 1.0 * batch.symmetric(batch.logits(), batch.momentum.detach())
    return batch.loss() + alpha * added


# ---------------------------------------------------------------------- the task's loss


def fgm(batch: Batch, alpha: float) -> Tensor:
    """Miyato et al. 2017 (arXiv 1605.07725), equation 2."""
    g = batch.gradient(batch.loss, torch.zeros_like(batch.embeddings))
    r = 0.016 * batch.rms() * batch.coordinates().sqrt() * divided(g, length(g))
    return batch.loss() + alpha * batch.loss(r)


def pgd(batch: Batch, alpha: float) -> Tensor:
    """Madry et al. 2018 (arXiv 1706.06083), section 2.1, beside the clean loss."""
    unit = batch.rms() * batch.coordinates().sqrt()
    r = 0.016 * batch.rms() * batch.uniform()
    for _ in range(3):
        g = batch.gradient(batch.loss, r)
        r = shortened(r + 0.0133 * unit * divided(g, length(g)), 0.016 * unit)
    return batch.loss() + alpha * batch.loss(r)


def freelb(batch: Batch, alpha: float) -> Tensor:
    """Zhu et al. 2020 (arXiv 1909.11764), Algorithm 1; K + 1 points as in their code."""
    r = 0.4 / batch.coordinates().sqrt() * batch.uniform()
    total = batch.loss(r)
    for _ in range(3):
        g = batch.gradient(batch.loss, r)
        r = shortened(r + 0.025 * divided(g, length(g)), torch.full_like(length(g), 0.3))
        total = total + batch.loss(r)
    return total / 4


def freelb_plus(batch: Batch, alpha: float) -> Tensor:
    """Li et al. 2021 (arXiv 2108.12777): more steps, nothing projected."""
    r = 0.05 / batch.coordinates().sqrt() * batch.uniform()
    total = batch.loss(r)
    for _ in range(10):
        g = batch.gradient(batch.loss, r)
        r = r + 0.03 * divided(g, length(g))
        total = total + batch.loss(r)
    return total / 11


METHODS = {
    "calibrated": calibrated,
    "paper": paper,
    "reference": reference,
    "vat": vat,
    "r3f": r3f,
    "smart": smart,
    "fgm": fgm,
    "pgd": pgd,
    "freelb": freelb,
    "freelb++": freelb_plus,
}
