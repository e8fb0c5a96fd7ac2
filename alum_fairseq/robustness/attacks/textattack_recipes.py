"""Attacks of the literature as TextAttack has them, for those who have it installed.

Morris et al. 2020, "TextAttack: A Framework for Adversarial Attacks, Data Augmentation, and
Adversarial Training in NLP" (arXiv 2005.05909). Many recipes fetch what they need (word lists,
embeddings, language models) when they are first used.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch

from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.problems import Classification
from alum_fairseq.robustness.attacks.greedy import Attempt
from alum_fairseq.robustness.attacks.noise import seeded
from alum_fairseq.robustness.attacks.words import Editor, edits_between
from alum_fairseq.robustness.types import Example, Texts, Verdict

# From some texts to the logits of every class, for each.
PredictLogits = Callable[[list[Texts]], list[list[float]]]


def run_recipe(
    name: str,
    examples: Sequence[Example],
    labels: Sequence[str],
    predict_logits: PredictLogits,
    *,
    max_queries: int,
    a_word: bool = False,
    seed: int,
    editable: Collection[int] | None = None,
) -> list[Attempt]:
    """Attack a classifier with one of TextAttack's recipes.

    TextAttack draws from the global generators of Python, NumPy and torch. They are seeded anew
    for every example, so that its result does not depend on the other examples.

    Args:
        name: the class of the recipe, such as ``DeepWordBugGao2018``.
        examples: all have equally many texts. One that the model is wrong about is left as it is.
        labels: the classes, in the order of the logits.
        max_queries: how many texts the model may be asked about per example, the original included.
        a_word: whether it may be asked that often for each word that may be edited.
        editable: the numbers of the texts that may be edited, from 0; None: all.

    Raises:
        UsageError: TextAttack or what the recipe needs is not installed, or the recipe is not
            known, or attacks no classifier, or needs gradients.
    """
    library = _library()
    wrapper = _wrapper(library, predict_logits)
    attack = _build(library, name, wrapper)
    columns = [f"text {i}" for i in range(len(examples[0].texts) if examples else 0)]
    if editable is not None:
        others = [column for i, column in enumerate(columns) if i not in editable]
        keep = library.constraints.pre_transformation.InputColumnModification(columns, others)
        attack.pre_transformation_constraints.append(keep)
    attempts = []
    for example in examples:
        library.shared.utils.set_seed(seeded(seed, name, example.texts).getrandbits(32))
        attack.clear_cache()
        wrapper.queries = 0
        words = Editor(example.texts, editable).words if a_word else 1
        attack.goal_function.query_budget = max_queries * max(1, words)
        given = OrderedDict(zip(columns, example.texts, strict=True))
        try:
            ended = attack.attack(given, labels.index(example.answer)).perturbed_result
        except (ImportError, OSError) as error:  # over what is loaded at its first use
            raise UsageError(f"TextAttack's {name} cannot be run: {one_line(error)}") from None
        texts = _as_texts(ended.attacked_text.tokenizer_input)
        verdict = _verdict(ended.raw_output, labels, example.answer)
        edits = edits_between(example.texts, texts)
        attempts.append(Attempt(texts, verdict, edits, wrapper.queries))
    return attempts


def _verdict(probabilities: Any, labels: Sequence[str], answer: str) -> Verdict:
    problem = Classification(tuple(labels))
    tiny = torch.finfo(torch.float32).tiny  # for a probability that came out as zero
    logits = torch.as_tensor(probabilities).clamp_min(tiny).log()
    return problem.verdict(logits, problem.targets([(answer,)])[0])


def _wrapper(library: Any, predict_logits: PredictLogits) -> Any:
    """A model as TextAttack wants it, which counts in ``queries`` the texts it was asked about."""

    class Wrapper(library.models.wrappers.ModelWrapper):
        model = predict_logits
        queries = 0

        def __call__(self, text_input_list: Sequence[str | tuple[str, ...]]) -> np.ndarray:
            self.queries += len(text_input_list)
            # In double precision, so that a confident model's answers still differ. What adds up
            # to 1, TextAttack would take for probabilities: these add up to 0.
            found = np.array(predict_logits(list(map(_as_texts, text_input_list))), float)
            return found - found.mean(axis=1, keepdims=True)

    return Wrapper()


def _library() -> Any:
    try:
        with redirect_stdout(sys.stderr):  # it tells what it downloads
            import textattack
            import textattack.attack_recipes
    except (ImportError, LookupError, OSError) as error:
        raise UsageError(
            f"attacks by TextAttack's recipes need it installed (pip install textattack), but it "
            f"cannot be loaded: {one_line(error)}"
        ) from None
    # It would report of every attack that it does not know the model's class.
    textattack.shared.utils.logger.setLevel(logging.ERROR)
    return textattack


def _build(library: Any, name: str, wrapper: Any) -> Any:
    recipes = {
        key: value
        for key, value in vars(library.attack_recipes).items()
        if isinstance(value, type) and issubclass(value, library.attack_recipes.AttackRecipe)
    }
    del recipes["AttackRecipe"]
    if name not in recipes:
        raise UsageError(
            f"TextAttack has no recipe {name}: it must be one of {', '.join(sorted(recipes))}"
        )
    try:
        with redirect_stdout(sys.stderr):
            attack = recipes[name].build(wrapper)
    except Exception as error:  # each recipe has its own
        raise UsageError(f"TextAttack's {name} cannot be set up: {one_line(error)}") from None
    if not isinstance(attack.goal_function, library.goal_functions.UntargetedClassification):
        raise UsageError(f"TextAttack's {name} does not try to change a classifier's decision")
    return attack


def _as_texts(given: str | tuple[str, ...]) -> Texts:
    """What TextAttack calls the tokenizer's input is a bare string where there is one text."""
    return (given,) if isinstance(given, str) else tuple(given)
