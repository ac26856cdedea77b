# SPDX-License-Identifier: Apache-2.0
"""Random transforms whose draws depend on the item and the epoch, and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch.utils.data import Dataset

__all__ = ["SeededDataset"]


class SeededDataset(Dataset):
    """Seeds a data set's random transforms for each item from (seed, epoch, index).

    MONAI seeds them once for each DataLoader or worker, so that what happens to an image depends on how many workers
    and processes there are and on the images before it. Here it does not.

    Args:
        dataset: one of MONAI's, with a random `transform`, for example a Compose; cached items are as good as others.
        seed: the run's.

    Raises:
        TypeError: when the data set's transform cannot be seeded.

    Example:
        >>> from monai.data import Dataset
        >>> from monai.transforms import RandGaussianNoise
        >>> seeded = SeededDataset(Dataset([torch.zeros(1), torch.zeros(1)], RandGaussianNoise(prob=1)), seed=3)
        >>> first, second = seeded[0], seeded[1]
        >>> torch.equal(seeded[0], first), torch.equal(first, second)
        (True, False)
    """

    def __init__(self, dataset: Any, *, seed: int = 0) -> None:
        transform = getattr(dataset, "transform", None)
        if not isinstance(transform, Randomizable):
            raise TypeError(f"Expected `dataset` with a Randomizable `transform`, got {type(transform).__name__}.")
        self.dataset = dataset
        self.seed = seed
        # In shared memory: workers that live on (`persistent_workers`) see the epoch change as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; before the epoch's iteration starts."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        seed = np.random.SeedSequence([self.seed % 2**32, int(self._epoch), index]).generate_state(1)[0]
        self.dataset.transform.set_random_state(seed=int(seed))
        return self.dataset[index]
