# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from monai_kdsam.networks import SharedBatchNorm2d, synchronize_batch_norm

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path):
    """A group of one process; of two: tests/test_processes.py, where a distillation of two equals that of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("training", [True, False])
def test_one_process_has_the_batch_norm_of_torch_with_its_gradients_and_statistics(training) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    nn.init.uniform_(network[1].weight)
    ours = synchronize_batch_norm(copy.deepcopy(network), CPU)
    assert isinstance(ours[1], SharedBatchNorm2d)
    assert isinstance(ours[4], SharedBatchNorm2d)
    for step in range(3):
        image = 5 + torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        one, other = (part.train(training)(image) for part in (network, ours))
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
        one.square().mul(image[:, :1, :6, :6]).mean().backward()
        other.square().mul(image[:, :1, :6, :6]).mean().backward()
    assert network.state_dict().keys() == ours.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-5, rtol=1e-5)
    for one, other in zip(network.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("alone")
def test_the_output_has_the_precision_of_the_input() -> None:
    norm = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(2)), CPU)
    assert norm(torch.randn(2, 2, 4, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("training", [True, False])
def test_the_activation_inside_a_norm_of_timm_stays(training) -> None:
    layers = pytest.importorskip("timm.layers", reason="needs the extra `timm`")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layers.BatchNormAct2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    ours = synchronize_batch_norm(copy.deepcopy(network), CPU)
    assert all(isinstance(ours[place], SharedBatchNorm2d) for place in (1, 3))
    image = 5 + torch.randn(4, 3, 8, 8)
    one, other = (part.train(training)[:2](image) for part in (network, ours))
    assert one.min() == 0
    torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_a_norm_of_an_unknown_class_is_refused() -> None:
    class OtherNorm(nn.BatchNorm2d):
        pass

    with pytest.raises(TypeError, match="Cannot share a batch norm of class OtherNorm between processes"):
        synchronize_batch_norm(nn.Sequential(OtherNorm(2)), CPU)


def test_on_cuda_the_activation_inside_a_norm_of_timm_stays() -> None:
    layers = pytest.importorskip("timm.layers", reason="needs the extra `timm`")
    network = synchronize_batch_norm(nn.Sequential(layers.BatchNormAct2d(4), nn.BatchNorm2d(4)), torch.device("cuda"))
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in network)
    assert isinstance(network[0].act, nn.ReLU)


def test_the_optimizers_parameters_are_still_the_networks() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(3)))
    before = [id(parameter) for parameter in network.parameters()]
    assert [id(parameter) for parameter in synchronize_batch_norm(network, CPU).parameters()] == before
