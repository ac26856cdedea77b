# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_kdsam.losses import WeightedSumLoss


class Constant(nn.Module):
    """A loss of one value, which counts its calls."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.calls = 0

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return pred.sum() * 0 + self.value


ZERO = torch.zeros(2)


def test_the_sum_is_weighted_and_a_term_without_a_weight_counts_once() -> None:
    loss = WeightedSumLoss({"a": Constant(2.0), "b": Constant(10.0), "c": Constant(100.0)}, {"a": 3, "c": 0.5})
    assert loss(ZERO, ZERO).item() == 3 * 2 + 10 + 50


def test_the_gradient_is_the_weighted_sum_of_the_terms_gradients() -> None:
    pred = torch.tensor([3.0, -1.0], requires_grad=True)
    WeightedSumLoss({"l1": nn.L1Loss(reduction="sum"), "mse": nn.MSELoss(reduction="sum")}, {"mse": 0.5})(
        pred, ZERO
    ).backward()
    assert pred.grad.tolist() == [1 + 3, -1 - 1]


def test_a_term_of_weight_zero_is_not_computed_and_not_reported() -> None:
    unused = Constant(float("nan"))
    loss = WeightedSumLoss({"a": Constant(2.0), "unused": unused}, {"unused": 0})
    value = loss(ZERO, ZERO)
    assert value.item() == 2
    assert unused.calls == 0
    assert loss.report({"loss": value}) == {"loss": 2.0, "a": 2.0}


def test_a_term_of_weight_zero_may_be_absent() -> None:
    assert WeightedSumLoss({"a": Constant(2.0), "disabled": None}, {"disabled": 0.0})(ZERO, ZERO).item() == 2


def test_the_report_gives_the_total_and_every_term_unweighted() -> None:
    loss = WeightedSumLoss({"a": Constant(2.0), "b": Constant(10.0)}, {"a": 3})
    value = loss(ZERO, ZERO)
    expected = {"loss": 16.0, "a": 2.0, "b": 10.0}
    assert loss.report({"loss": value}) == expected
    assert loss.report([{"loss": value}, {"loss": value}]) == expected  # what a decollating engine hands over


def test_the_report_is_of_the_last_call() -> None:
    loss = WeightedSumLoss({"l1": nn.L1Loss()})
    for size in (1.0, 5.0):
        value = loss(torch.full((2,), size), ZERO)
    assert loss.report({"loss": value}) == {"loss": 5.0, "l1": 5.0}


def test_reported_values_hold_no_graph() -> None:
    loss = WeightedSumLoss({"l1": nn.L1Loss()})
    loss(torch.ones(2, requires_grad=True), ZERO)
    assert not loss.values["l1"].requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_ends_the_run_by_name(value) -> None:
    loss = WeightedSumLoss({"fine": Constant(1.0), "broken": Constant(value)})
    total = loss(ZERO, ZERO)
    text = f"no longer finite: loss = {value}, broken = {value}. Lower `learning_rate`"
    with pytest.raises(ValueError, match=text):
        loss.report({"loss": total})


def test_a_weight_for_an_unknown_term_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected `weights` for terms among dice, bce, got one for disc\."):
        WeightedSumLoss({"dice": Constant(1), "bce": Constant(1)}, {"disc": 2.0})


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one term with a weight other than 0"):
        WeightedSumLoss({"dice": Constant(1)}, {"dice": 0})


def test_parameters_of_the_terms_belong_to_the_loss() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    assert [name for name, _ in WeightedSumLoss({"learned": Learned()}).named_parameters()] == ["terms.learned.scale"]
