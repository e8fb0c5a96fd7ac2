"""What the criteria ask of a problem: one prediction's logits, and what each counts."""

from __future__ import annotations

import pytest
import torch

from alum_fairseq.adversarial.divergences import get_divergence
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import (
    PROBLEMS,
    Classification,
    MaskedLM,
    MultipleChoice,
    Problem,
    Regression,
    register_problem,
)

PADDING = 1


@pytest.mark.parametrize(
    "problem", [Classification(), Regression(), MaskedLM()], ids=lambda p: p.name
)
def test_the_logits_are_those_of_the_only_call(problem: Problem) -> None:
    logits = torch.randn(4, 3)
    assert problem.logits([logits]) is logits
    for outputs in ([], [logits, logits]):
        with pytest.raises(UsageError, match=f"called the model {len(outputs)} times"):
            problem.logits(outputs)


def test_a_choice_is_made_of_one_call_for_each_candidate() -> None:
    wanted = torch.randn(4, 3)
    assert torch.equal(MultipleChoice().logits(wanted.split(1, dim=1)), wanted)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_divergence_suits_the_logits(name: str) -> None:
    problem = PROBLEMS[name]
    assert get_divergence(problem.divergence).categorical == problem.categorical


@pytest.mark.parametrize(
    "problem", [Classification(), Regression(), MultipleChoice()], ids=lambda p: p.name
)
def test_every_answer_counts_one(problem: Problem) -> None:
    assert problem.weights(torch.tensor([0, 1]), torch.randn(2, 1), PADDING) is None


def test_words_count_where_they_are_masked() -> None:
    target = torch.tensor([[7, PADDING, 9], [PADDING, PADDING, 5]])
    wanted = [[float(int(word) != PADDING) for word in row] for row in target]
    every = torch.randn(2, 3, 11)
    assert MaskedLM().weights(target, every, PADDING).tolist() == wanted
    flat = MaskedLM().weights(target, every.flatten(0, 1), PADDING)
    assert flat.tolist() == [each for row in wanted for each in row]
    assert MaskedLM().weights(target, every[target.ne(PADDING)], PADDING) is None


@pytest.mark.parametrize("divergence", ["kl", "squared_error"])
def test_the_weights_leave_the_masked_words(divergence: str) -> None:
    target = torch.tensor([[7, PADDING, 9], [PADDING, PADDING, 5]])
    p, q = torch.randn(2, 2, 3, 11, dtype=torch.float64)
    measure = get_divergence(divergence)
    weights = MaskedLM().weights(target, p, PADDING).double()
    total = measure.total(p, q, weights if measure.categorical else weights.unsqueeze(-1))
    masked = target.ne(PADDING)
    torch.testing.assert_close(total, measure.total(p[masked], q[masked]))


def test_a_user_registers_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(PROBLEMS)
    monkeypatch.setattr("alum_fairseq.problems.problem.PROBLEMS", known)

    @register_problem
    class Tagging(Problem):
        name = "tagging"

    assert known["tagging"] is Tagging
    with pytest.raises(UsageError, match="'tagging' already"):
        register_problem(type("Other", (Problem,), {"name": "tagging"}))
