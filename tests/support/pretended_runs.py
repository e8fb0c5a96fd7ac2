"""Whatever computes, on the pretended GPU and on the CPU: how far apart it comes out, in JSON.

    python -m support.pretended_runs some --cases FILE      what the normal tests look at
    python -m support.pretended_runs all                    every combination: minutes
    python -m support.pretended_runs faults                 with faults put in

The device is to be there before torch is imported, and stays: it needs a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    from support import pretended_cuda  # before torch

# isort: split
import torch
from fairseq.logging import metrics
from torch import Tensor
from torch.utils import checkpoint

from alum_fairseq.adversarial import norms
from alum_fairseq.adversarial.adversary import Ascent
from alum_fairseq.criterions import updates
from alum_fairseq.encoder import tap
from alum_fairseq.encoder.random_state import random_state
from alum_fairseq.predict import Predictor
from support.counted_updates import count
from support.method_cases import KINDS, engine, make_case, prepared, stock
from support.on_gpu import (
    DTYPES,
    METHODS,
    distance,
    error,
    error_of_low_memory,
    noise_of_the_cpu,
    on_the_gpu,
    passes_with_dropout,
    reports_of_robustness,
)
from support.places import ROOT
from support.trainers import KINDS as TASKS
from support.trainers import make_batch, make_trainer
from support.untrained import TOKENS, texts

sys.path.insert(0, str(ROOT / "scripts"))
import benchmark

Found = dict[str, Any]  # errors by what they are of; or what refused
Run = Callable[[], Found]

PRECISIONS = (*DTYPES, "amp")
# Perturbations that half precision does not round away.
LARGE = {"alum_alpha": 2.0, "alum_epsilon": 0.3, "alum_noise_std": 0.05}
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("paper", "reference", "r3f"), LARGE),
    "smart": {**LARGE, "alum_noise_std": 0.1, "alum_step_size": 0.2, "alum_proximal": 0.5},
    **{name: {"alum_noise_std": 0.1} for name in ("freelb", "freelb++")},
}


@noise_of_the_cpu()
def update(
    kind: str, preset: str, precision: str = "fp32", model: Any = None, **alum: Any
) -> Found:
    """The loss and the gradients of a criterion."""
    case = make_case(kind, **(model or {}))
    dtype = DTYPES.get(precision, torch.float32)
    for each in (case.model, case.momentum):
        each.to(dtype)
    if kind == "regression":
        case.sample["target"] = case.sample["target"].to(dtype)
    options = {**OPTIONS.get(preset, {"alum_alpha": 2.0, "alum_noise_std": 0.1}), **alum}
    found = []
    for each in (on_the_gpu(case), case):
        device = each.sample["target"].device.type
        amp = precision == "amp"
        with torch.autocast(device, torch.float16) if amp else nullcontext():
            found.append(engine(each, preset, **options))
            without = stock(each)
    assert error(without, found[1]) > 1e-5, "nothing was added to the task's loss"
    return {"loss": distance(*(each["loss"] for each in found)), "gradients": error(*found)}


@noise_of_the_cpu()
def validation(kind: str) -> Found:
    """What is logged of a batch under attack."""
    case, logs = make_case(kind), []
    for each in (on_the_gpu(case), case):
        each.model.eval()
        criterion = prepared(each, "calibrated", alum_validate=True, alum_log_gain_interval=1)
        torch.manual_seed(2)
        with torch.no_grad():
            log = criterion(each.model, each.sample)[2]
        logs.append({name: torch.as_tensor(value).cpu() for name, value in log.items()})
    got, expected = logs
    assert got.keys() == expected.keys()
    assert expected["_alum_gain_adversarial"] > expected["_alum_gain_random"] > 0
    return {name: distance(got[name], value) for name, value in expected.items() if value}


@noise_of_the_cpu()
def training(task: str, parts: int = 1, alum: Any = None, **more: Any) -> Found:
    """What two updates of fairseq's trainer change."""
    changes = []
    for cpu in (False, True):
        with (
            ExitStack() as stack,
            tempfile.TemporaryDirectory() as folder,
            metrics.aggregate("train", new_root=True),
        ):
            if cpu:  # else fairseq clips on the GPU that there is
                stack.enter_context(
                    mock.patch.object(torch.cuda, "is_available", return_value=False)
                )
            # Beside so large an epsilon, roundings of small gradients are small.
            options = {"adam-eps": 1.0, "lr": 0.5, "dropout": 0, "attention-dropout": 0}
            options |= {"encoder-layers": 2, "update-freq": parts, "cpu": cpu, **more}
            trainer = make_trainer(task, Path(folder), alum or {}, **options)
            before = _weights(trainer.model)
            batch = make_batch(trainer, task)
            for number in range(2):
                torch.manual_seed(number)
                trainer.train_step([copy.deepcopy(batch) for _ in range(parts)])
            after = _weights(trainer.model)
        changes.append({name: weight - before[name] for name, weight in after.items()})
    return {"changes": error(*changes)}


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.float().cpu().clone() for name, weight in model.state_dict().items()}


def masks() -> Found:
    """The dropout masks of a pass that is run again; of another, which are to be others."""
    first, again, other = passes_with_dropout(torch.float32)
    assert (other - first).abs().max() > 0.1
    return {"logits": distance(again, first)}


def low_memory(kind: str) -> Found:
    """Beside normal memory, dropout and all."""
    return {"all": error_of_low_memory(kind)}


def prediction(case: Any) -> Found:
    """Of texts, by a checkpoint."""
    got, expected = (
        Predictor.load(case.path, device=device).logits(texts(case)) for device in ("cuda", "cpu")
    )
    if isinstance(got, list):  # one for each example, of each of its pieces
        got, expected = (torch.cat([x for y in each for x in y.logits]) for each in (got, expected))
    return {"logits": distance(got, expected)}


def robustness(case: Any) -> Found:
    """Attacks on the embeddings, by the command."""
    with tempfile.TemporaryDirectory() as folder:
        table = case.table if case.kind in TOKENS else None
        got, expected = reports_of_robustness(case.path, Path(folder), table)
    assert got.keys() == expected.keys()
    assert len(got) > 2
    return {name: abs(got[name] - x) / max(1.0, abs(x)) for name, x in expected.items()}


def benchmarked() -> Found:
    """The report of scripts/benchmark.py."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        words = ["--size", "tiny", "--train-updates", "5", "--rounds", "1", "--modes", "exact"]
        words += ["--tasks", "masked_lm", "--precision", "fp16", "--json", str(report)]
        assert benchmark.main(words) == 0
        return json.loads(report.read_text())["results"]["masked_lm"]["fp16"]


def methods(every: bool) -> Iterator[tuple[str, Run]]:
    """Criterion x preset and memory x precision: all, or every pair of two of these three."""
    for i, (preset, memory) in enumerate(METHODS):
        for j, kind in enumerate(KINDS):
            for k, precision in enumerate(PRECISIONS):
                if every or (i + j + k) % len(PRECISIONS) == 0:
                    run = partial(update, kind, preset, precision, alum_memory=memory)
                    yield f"{kind}, {preset}, {memory}, {precision}", run


def others() -> Iterator[tuple[str, Run]]:
    """What an update may be beside a method, and what is there beside updates."""
    checkpointed = {"checkpoint_activations": True}
    for kind in KINDS:
        yield f"{kind}, validation", partial(validation, kind)
        yield f"{kind}, low memory and dropout", partial(low_memory, kind)
        yield f"{kind}, checkpoints, freelb", partial(update, kind, "freelb", model=checkpointed)
        for memory in ("normal", "low"):
            for name, model, options in (
                ("fraction", {}, {"alum_fraction": 0.5}),
                ("LayerDrop", {"encoder_layers": 4, "encoder_layerdrop": 0.5}, {}),
                ("checkpoints", checkpointed, {}),
                ("site 1", {}, {"alum_site": "1"}),
            ):
                options["alum_memory"] = memory
                run = partial(update, kind, "calibrated", model=model, **options)
                yield f"{kind}, {name}, {memory}", run
    # Of its own start, noise of 1e-5, the first gradient is lost in rounding.
    smart = {"alum-preset": "smart", "alum-epsilon": 0.3, "alum-step-size": 0.2}
    smart["alum-noise-std"] = 0.1
    for task in TASKS:
        yield f"{task}, EMA", partial(training, task, alum=smart, **{"store-ema": True})
        for memory in ("normal", "low"):
            run = partial(training, task, parts=2, alum={"alum-memory": memory})
            yield f"{task}, update-freq, {memory}", run
    for precision in ("fp16", "memory-efficient-fp16", "bf16", "amp"):
        # fairseq's amp divides by its scale twice, which Adam, without its epsilon, does not mind.
        scale = 1 if precision == "amp" else 4
        more = {precision: True, "fp16-init-scale": scale, "fp16-no-flatten-grads": True}
        yield f"sentence_prediction, trainer, {precision}", partial(training, TASKS[1], **more)
    yield "masks of a pass that is run again", masks


def with_checkpoints(cases: dict[str, Any]) -> Iterator[tuple[str, Run]]:
    """What works on checkpoints."""
    for kind, case in cases.items():
        yield f"{kind}, predictions", partial(prediction, case)
    for kind in ("single", *TOKENS):
        yield f"{kind}, robustness", partial(robustness, cases[kind])


def faults(gpu: Any) -> Iterator[tuple[str, Run]]:
    """What would be wrong on a GPU, each in a run that is to see it."""
    as_factor, step = norms.as_factor, Ascent.step

    def waiting(ascent: Ascent, delta: Tensor, gradient: Tensor) -> Tensor:
        gradient.sum().item()
        return step(ascent, delta, gradient)

    cpu = torch.device("cpu")
    mlm = partial(update, "mlm", "calibrated")
    patched = mock.patch.object
    every: tuple[tuple[str, AbstractContextManager[Any], Run], ...] = (
        (
            "generator of the CPU",
            patched(updates, "_workers_own", lambda _: torch.Generator("cpu")),
            mlm,
        ),
        ("tensor on the CPU", patched(norms, "as_factor", lambda *a: as_factor(*a).cpu()), mlm),
        ("state not restored", patched(tap, "random_state", lambda _: random_state(cpu)), masks),
        (
            "state not restored in low memory",
            patched(checkpoint, "set_device_states", lambda *_, **__: None),
            partial(low_memory, "mlm"),
        ),
        (
            "wait in the ascent",
            patched(Ascent, "step", waiting),
            partial(count, gpu, "masked_lm", "exact"),
        ),
    )
    for name, fault, run in every:

        def faulty(fault: Any = fault, run: Run = run) -> Found:
            with fault:
                return run()

        yield name, faulty


def main() -> None:
    """Run the selection."""
    parser = argparse.ArgumentParser()
    parser.add_argument("selection", choices=("some", "all", "faults"))
    parser.add_argument("--cases", type=Path, help="what the tests' fixture of this name gives")
    parser.add_argument("-k", default="", help="those with this in their names")
    options = parser.parse_args()
    gpu = pretended_cuda.start()
    logging.disable(logging.WARNING)
    if options.selection == "faults":
        chosen = [*faults(gpu)]
    else:
        chosen = [*methods(every=options.selection == "all")]
        if options.selection == "some":
            chosen += [*others(), ("benchmark", benchmarked)]
        if options.cases is not None:
            chosen += with_checkpoints(pickle.loads(options.cases.read_bytes()))
    found: dict[str, Found] = {}
    for name, run in chosen:
        if options.k in name:
            try:
                with redirect_stdout(sys.stderr):
                    found[name] = run()
            except Exception as refused:
                lines = traceback.format_exception(refused)
                found[name] = {"refused": "".join(lines)[-4000:]}
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
