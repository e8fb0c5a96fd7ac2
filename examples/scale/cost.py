#!/usr/bin/env python
"""Computes what the pre-training runs of Liu et al. 2020 cost, by formula.

    python examples/scale/cost.py                                    # by a stated utilisation
    python examples/scale/cost.py --tokens-per-second H100:base=61000  # by what you measured
    python examples/scale/cost.py --markdown > docs/scale_cost.md

Nothing here was measured on the cards in question; prices and networks are assumptions, all of
them options.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alum_fairseq import cli

SEQUENCES, LENGTH = 256, 512  # of an update
GPUS = (8, 64, 512)
GPUS_A_NODE = 8

# Forward, gradient to inputs and gradient to weights count 1 each. A plain update has one of each.
# With one ascent step: clean forward 1, ascent's forward 1 and gradient 1, adversarial forward 1,
# and a backward pass through both branches, 4.
PLAIN, ADVERSARIAL = 3, 8
RATIO = ADVERSARIAL / PLAIN


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
        peak: dense bf16 or fp16 operations a second, in units of 1e12 (the maker's data sheet).
        price: US dollars an hour.
        links: bytes a second in one direction between the cards of a node, in units of 1e9.
    """

    name: str
    peak: float
    price: float
    links: float


@dataclass(frozen=True)
class Run:
    """A pre-training run.

    Attributes:
        parameters: of the model.
        updates: how many there are.
        adversarial: the share of them that has the adversary.
    """

    name: str
    model: str
    parameters: float
    updates: int
    adversarial: float

    @property
    def tokens(self) -> float:
        """Tokens that are trained on, repetitions included."""
        return self.updates * SEQUENCES * LENGTH

    @property
    def ratio(self) -> float:
        """Computation, in multiples of the plain run's."""
        return 1 + self.adversarial * (RATIO - 1)

    @property
    def operations(self) -> float:
        """Floating-point operations, at 6 for each parameter and token of plain training."""
        return 6 * self.parameters * self.tokens * self.ratio


# Peaks and NVLink: the makers' data sheets (A100 SXM, H100 SXM, H200 SXM; without sparsity).
PRICES_OF = "November 2026"
CARDS = (
    Card("A100", 312, 1.80, 300),
    Card("H100", 989, 3.00, 450),
    Card("H200", 989, 3.80, 450),
)
# 125M and 355M: Liu et al. 2019 (arXiv 1907.11692). Updates: Liu et al. 2020 (arXiv 2004.08994),
# and BERT's for the run from scratch, as in examples/pretraining.
RUNS = (
    Run("continual, base", "base", 125e6, 100_000, 1.0),
    Run("continual, large", "large", 355e6, 100_000, 1.0),
    Run("from scratch, base", "base", 125e6, 1_000_000, 0.5),
)


@dataclass(frozen=True)
class Assumptions:
    """What the figures rest on.

    Attributes:
        utilisation: the share of its peak that a card reaches.
        network: bits a second that a node sends, in units of 1e9.
        gradient_bytes: of a parameter's gradient in the all-reduce.
        measured: tokens a second that a card trains on with the adversary, by card and model.
    """

    utilisation: float = 0.3
    network: float = 400.0
    gradient_bytes: int = 2
    measured: tuple[tuple[str, str, float], ...] = ()

    def tokens_per_second(self, card: Card, run: Run) -> float:
        """Of one card, with the adversary in every update."""
        for name, model, tokens in self.measured:
            if (name, model) == (card.name, run.model):
                return tokens
        return card.peak * 1e12 * self.utilisation / (6 * run.parameters * RATIO)


def gpu_hours(card: Card, run: Run, assumed: Assumptions) -> float:
    """Hours of one card, communication apart."""
    return run.tokens * run.ratio / RATIO / assumed.tokens_per_second(card, run) / 3600


def all_reduce_seconds(gpus: int, card: Card, run: Run, assumed: Assumptions) -> float:
    """Of the gradients of an update, as a ring: 2 (n - 1) / n times their size over a link.

    Within a node over its own links; beyond, the ring leaves each node once, over its network.
    """
    size = run.parameters * assumed.gradient_bytes
    bandwidth = card.links * 1e9 if gpus <= GPUS_A_NODE else assumed.network * 1e9 / 8
    return 2 * (gpus - 1) / gpus * size / bandwidth


def computing_seconds(gpus: int, card: Card, run: Run, assumed: Assumptions) -> float:
    """Of an update with the adversary, its sequences dealt out to the cards evenly."""
    busy = min(gpus, SEQUENCES)
    return SEQUENCES * LENGTH / busy / assumed.tokens_per_second(card, run)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def costs(cards: Sequence[Card], assumed: Assumptions) -> str:
    """What each run costs on each card."""
    rows = []
    for run in RUNS:
        for card in cards:
            hours = gpu_hours(card, run, assumed)
            rows.append(
                [
                    run.name,
                    card.name,
                    f"{assumed.tokens_per_second(card, run):,.0f}",
                    f"{hours:,.0f}",
                    f"{hours / run.ratio:,.0f}",
                    f"{hours * card.price:,.0f}",
                ]
            )
    head = ["run", "card", "tokens/s", "GPU-hours", "of which plain training", "US$"]
    return table(head, rows)


def scaling(card: Card, assumed: Assumptions) -> str:
    """What changes with the number of cards."""
    rows = []
    for run in RUNS[:2]:
        for gpus in GPUS:
            computing = computing_seconds(gpus, card, run, assumed)
            sending = all_reduce_seconds(gpus, card, run, assumed)
            days = run.updates * (computing + sending) / 86_400
            rows.append(
                [
                    run.name,
                    str(gpus),
                    f"{SEQUENCES // gpus}" if gpus <= SEQUENCES else f"1 on {SEQUENCES} of them",
                    f"{1000 * computing:.0f}",
                    f"{1000 * sending:.1f}",
                    f"{100 * sending / (computing + sending):.0f}%",
                    f"{24 * days:,.1f}",
                    f"{24 * days * gpus * card.price:,.0f}",
                ]
            )
    head = ["run", "GPUs", "sequences a GPU", "computing, ms", "all-reduce, ms", "its share"]
    return table([*head, "hours", "US$"], rows)


def page(cards: Sequence[Card], assumed: Assumptions) -> str:
    """The page docs/scale_cost.md."""
    template = Path(__file__).with_name("cost_template.md").read_text()
    settings = [
        ("utilisation, share of the peak", f"{assumed.utilisation:.0%}"),
        ("network of a node of 8", f"{assumed.network:g} Gbit/s"),
        ("bytes of a gradient", str(assumed.gradient_bytes)),
        *((f"{c.name}: peak, dense bf16", f"{c.peak:g} TFLOP/s") for c in cards),
        *((f"{c.name}: price of an hour ({PRICES_OF})", f"${c.price:.2f}") for c in cards),
        *((f"{c.name}: links in a node, one way", f"{c.links:g} GB/s") for c in cards),
    ]
    runs = [
        [
            r.name,
            f"{r.parameters / 1e6:.0f}M",
            f"{r.updates:,}",
            f"{r.tokens / 1e9:.1f}e9",
            f"{r.ratio:.2f}",
            f"{r.operations:.1e}",
        ]
        for r in RUNS
    ]
    head = ["run", "parameters", "updates", "tokens", "times plain", "operations"]
    return template.format(
        assumptions=table(["assumption", "value"], settings),
        runs=table(head, runs),
        costs=costs(cards, assumed),
        card=cards[1].name,
        scaling=scaling(cards[1], assumed),
    )


def _by_name(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=NUMBER") from None


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser("cost.py", "What the paper's runs cost.")
    parser.add_argument("--markdown", action="store_true", help="print the page docs/scale_cost.md")
    parser.add_argument("--utilisation", type=float, default=Assumptions.utilisation)
    parser.add_argument("--network", type=float, default=Assumptions.network, metavar="GBIT")
    parser.add_argument("--gradient-bytes", type=int, default=Assumptions.gradient_bytes)
    parser.add_argument(
        *("--price", "--prices"),
        type=_by_name,
        nargs="+",
        default=[],
        metavar="CARD=DOLLARS",
        help="of an hour, such as H100=2.5",
    )
    parser.add_argument(
        "--tokens-per-second",
        type=_by_name,
        nargs="+",
        default=[],
        metavar="CARD:MODEL=TOKENS",
        help="that one card trains on with the adversary, such as H100:base=60000",
    )
    args = parser.parse_args(argv)
    names = {card.name for card in CARDS}
    measured = []
    for key, tokens in args.tokens_per_second:
        card, _, model = key.partition(":")
        if card not in names or model not in {run.model for run in RUNS} or tokens <= 0:
            given = f"--tokens-per-second {key}={tokens:g}"
            parser.error(f"{given}: give CARD:MODEL=TOKENS, such as H100:base=60000")
        measured.append((card, model, tokens))
    for name, price in args.price:
        if name not in names or price < 0:
            parser.error(f"--price {name}={price:g}: the cards are {', '.join(sorted(names))}")
    for name in ("utilisation", "network", "gradient_bytes"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}: it must be above 0")
    args.measured = tuple(measured)
    return args


def main() -> None:
    """Run the command."""
    args = parse_arguments()
    prices = dict(args.price)
    cards = [replace(card, price=prices.get(card.name, card.price)) for card in CARDS]
    assumed = Assumptions(args.utilisation, args.network, args.gradient_bytes, args.measured)
    if args.markdown:
        print(page(cards, assumed), end="")
    else:
        print(costs(cards, assumed), scaling(cards[1], assumed), sep="\n", end="")


if __name__ == "__main__":
    main()
