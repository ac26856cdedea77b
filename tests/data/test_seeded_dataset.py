# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Compose, RandGaussianNoised, RandScaleIntensityd, ScaleIntensityd
from torch.utils.data import TensorDataset

from monai_kdsam.data import SeededDataset

ITEMS = [{"image": torch.arange(4.0)[None] + number} for number in range(6)]


def transforms() -> Compose:
    return Compose([
        ScaleIntensityd("image"), RandGaussianNoised("image", prob=0.7), RandScaleIntensityd("image", 0.5, prob=0.7)
    ])  # fmt: skip


def epoch(seeded: SeededDataset, number: int, **settings) -> torch.Tensor:
    """(6, 4): what an epoch draws, in the order of the items."""
    seeded.set_epoch(number)
    return torch.cat([batch["image"][:, 0] for batch in DataLoader(seeded, **settings)])


def plain(seed: int = 5) -> SeededDataset:
    return SeededDataset(Dataset(ITEMS, transforms()), seed=seed)


def test_neither_workers_nor_batches_nor_the_cache_change_what_is_drawn() -> None:
    expected = epoch(plain(), 3)
    assert torch.equal(epoch(plain(), 3, num_workers=2, batch_size=2), expected)
    cached = CacheDataset(ITEMS, transforms(), cache_rate=0.5, progress=False)
    assert torch.equal(epoch(SeededDataset(cached, seed=5), 3, batch_size=4), expected)


def test_an_item_drawn_alone_is_the_item_drawn_among_others() -> None:
    seeded = plain()
    expected = epoch(seeded, 2)
    assert torch.equal(seeded[4]["image"][0], expected[4])


def test_seed_epoch_and_index_each_change_what_is_drawn() -> None:
    drawn = {tuple(epoch(plain(seed), number).flatten().tolist()) for seed in (0, 1, -1) for number in (1, 2, 3)}
    assert len(drawn) == 9
    noise = epoch(plain(), 1) - epoch(plain(), 1).mean()
    assert not torch.equal(noise[0], noise[1])


def test_workers_that_live_on_see_the_next_epoch() -> None:
    seeded = plain()
    loader = DataLoader(seeded, num_workers=1, persistent_workers=True)
    for number in (1, 2):
        seeded.set_epoch(number)
        drawn = torch.cat([batch["image"][:, 0] for batch in loader])
        assert torch.equal(drawn, epoch(plain(), number))


def test_a_dataset_without_random_transforms_is_refused() -> None:
    with pytest.raises(TypeError, match="Expected `dataset` with a Randomizable `transform`, got NoneType"):
        SeededDataset(TensorDataset(torch.zeros(3)))


class Threads(Dataset):
    """Threads of PyTorch, where an item is loaded."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return torch.get_num_threads()


def test_a_worker_has_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [int(count) for count in DataLoader(Threads([]), num_workers=1)] == [1, 1]
    finally:
        torch.set_num_threads(before)
