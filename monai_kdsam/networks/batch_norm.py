# SPDX-License-Identifier: Apache-2.0
"""Batch norm over the batch of all processes, whatever the device."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SharedBatchNorm2d", "synchronize_batch_norm"]


class _SumOverProcesses(torch.autograd.Function):
    """A tensor's sum over all processes; torch.distributed.nn has it, but deprecates it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that normalizes by the mean and variance of all processes' batches while it trains.

    torch's SyncBatchNorm refuses CPUs. Parameters, buffers and eval mode are those of nn.BatchNorm2d. `momentum` must
    be a number and running statistics must be tracked, as in every ResNet.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); B may differ between processes."""
        if not self.training:
            return super().forward(input)
        values = input.float()  # under autocast too: sums over a batch need the digits
        axes = (0, 2, 3)
        count = values.new_full((1,), values.numel() / values.shape[1])
        total = _SumOverProcesses.apply(torch.cat([values.sum(axes), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centered = values - mean[:, None, None]
        variance = _SumOverProcesses.apply(centered.square().sum(axes)) / count
        self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        momentum: Any = self.momentum
        statistics: Any = (self.running_mean, self.running_var)
        for kept, new in zip(statistics, (mean, variance), strict=True):
            kept.lerp_(new.to(kept.dtype), momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _SharedBatchNormAct2d(SharedBatchNorm2d):
    """The same for timm's BatchNormAct2d, which holds what follows the norm as well."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let a network's batch norms see the batch of all processes: torch's SyncBatchNorm on CUDA, ours elsewhere.

    The network's modules are changed in place; parameters, buffers and their names stay.

    Raises:
        TypeError: on a batch norm of another class, of which nobody knows what else it does.
    """
    shared: dict[type, type] = {nn.BatchNorm2d: SharedBatchNorm2d}
    timm_layers = sys.modules.get("timm.layers")  # a network with its layers has imported it
    if timm_layers is not None:
        shared[timm_layers.BatchNormAct2d] = _SharedBatchNormAct2d
    done = (*shared.values(), nn.SyncBatchNorm)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) not in (*shared, *done):
            raise TypeError(f"Cannot share a batch norm of class {type(module).__name__} between processes.")
    if device.type == "cuda":
        # torch's own would lose the activations inside timm's norms.
        convert = nn.SyncBatchNorm.convert_sync_batchnorm if timm_layers is None else timm_layers.convert_sync_batchnorm
        return convert(network)
    for module in network.modules():
        # The same state, so that optimizers and hooks keep what they hold.
        module.__class__ = shared.get(type(module), type(module))
    return network
