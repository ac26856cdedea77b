# SPDX-License-Identifier: Apache-2.0
"""A weighted sum of named losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_kdsam.errors import UserError

__all__ = ["WeightedSumLoss"]


class WeightedSumLoss(nn.Module):
    """Sum of named terms, each of which can be logged on its own.

    Args:
        terms: name -> loss of (pred, target).
        weights: name -> factor; 1 where a name is left out. A term of weight 0 is not computed.

    Raises:
        ValueError: when a weight names no term, or nothing remains.

    Example:
        >>> loss = WeightedSumLoss({"l1": nn.L1Loss(), "mse": nn.MSELoss()}, {"mse": 0.5})
        >>> loss(torch.zeros(2), torch.full((2,), 2.0)).item()
        4.0
        >>> loss.values["l1"].item(), loss.values["mse"].item()
        (2.0, 4.0)
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        weights = dict(weights or {})
        unknown = sorted(set(weights) - set(terms))
        if unknown:
            raise UserError(f"Expected `weights` for terms among {', '.join(terms)}, got one for {', '.join(unknown)}.")
        self.weights = {name: float(weights.get(name, 1.0)) for name in terms}
        self.terms = nn.ModuleDict({name: term for name, term in terms.items() if self.weights[name] != 0})
        if not self.terms:
            raise UserError("Expected at least one term with a weight other than 0.")
        self.values: dict[str, Tensor] = {}

    def forward(self, pred: Any, target: Any) -> Tensor:
        """The weighted sum; the unweighted terms are then in `values`."""
        return self._sum({name: term(pred, target) for name, term in self.terms.items()})

    def _sum(self, results: Mapping[str, Tensor]) -> Tensor:
        self.values = {name: value.detach() for name, value in results.items()}
        return torch.stack([self.weights[name] * value for name, value in results.items()]).sum()

    def report(self, output: Any) -> dict[str, float]:
        """The total and every term of the last call, as an `output_transform` of MONAI's logging handlers.

        Raises:
            UserError: when a term is not finite, instead of training on with weights that are lost.
        """
        first = output[0] if isinstance(output, list) else output
        values = {"loss": float(first["loss"])} | {name: float(value) for name, value in self.values.items()}
        broken = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"The loss is no longer finite: {', '.join(broken)}. Lower `learning_rate`; the best weights and the "
                "state of the last complete epoch are kept."
            )
        return values
