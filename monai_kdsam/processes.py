# SPDX-License-Identifier: Apache-2.0
"""A run of several processes: how they find each other, and which share of the work is whose."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from monai_kdsam.errors import UserError

__all__ = [
    "batch_share",
    "check_launch",
    "end_with_torchrun",
    "item_share",
    "join_processes",
    "own_shard",
    "shard_suffix",
    "synchronize_batch_norm",
    "tell_torchrun",
    "torchrun_number",
    "wait_for_all",
]

# While rank 0 checks every image before the first epoch, the others wait. torchrun ends them all when one fails.
PATIENCE = datetime.timedelta(days=1)


def torchrun_number(name: Literal["RANK", "LOCAL_RANK", "WORLD_SIZE"]) -> int:
    """A number that torchrun gives to each process.

    Raises:
        ValueError: when the process was not started by torchrun.
    """
    if name not in os.environ:
        raise UserError(
            f"Expected the environment variable {name}, which torchrun sets. Start a run with multi_gpu_train.yaml by "
            "`torchrun --nproc_per_node 2 -m monai.bundle run ...`, or leave that config out."
        )
    return int(os.environ[name])


def join_processes(device: torch.device) -> None:
    """Meet the other processes: over nccl on GPUs, over gloo on CPUs. Only rank 0 logs from here on, but for errors."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if torch.distributed.get_rank() > 0:
        logging.disable(logging.WARNING)


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let a network's batch norms see the batch of all processes, by torch's SyncBatchNorm.

    That refuses CPUs, where the network stays as it is: each process's batch norms see its own images.
    """
    if device.type != "cuda":
        return network
    # torch's own conversion would lose the activations inside timm's norms; a network with its layers has imported it.
    converter: Any = sys.modules.get("timm.layers", nn.SyncBatchNorm)
    converted: nn.Module = converter.convert_sync_batchnorm(network)
    return converted


def check_launch() -> None:
    """Raise a `ValueError` if torchrun started several processes that do not know of each other.

    Each would train on all images and overwrite the others' weights.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if torch.distributed.is_torchelastic_launched() else 1
    if started > 1 and not torch.distributed.is_initialized():
        raise UserError(
            f"torchrun started {started} processes, but the config is for one: "
            "put the bundle's configs/multi_gpu_train.yaml behind the configs of the phase."
        )


def tell_torchrun(message: str) -> None:
    """Leave the reason of this process's end where torchrun looks for it, to close its own report with.

    The other processes fail as well, at their next meeting, and have much to say about it.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        content = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": content}), encoding="utf-8")


def own_shard(shard: str | None = None) -> tuple[int, int]:
    """Which share of an archive is this process's, counted from 0, and of how many.

    Args:
        shard: "3/64" for the third of 64, as a job array counts them; None for all. torchrun's processes share it.

    Raises:
        ValueError: when it is something else.

    Example:
        >>> own_shard("3/64"), own_shard()
        ((2, 64), (0, 1))
    """
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard or "1/1")
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"Expected `shard` as in 3/64, the third of 64 (they count from 1), got {shard!r}.")
    number, count = int(match[1]) - 1, int(match[2])
    if not torch.distributed.is_torchelastic_launched():
        return number, count
    processes = torchrun_number("WORLD_SIZE")
    return number * processes + torchrun_number("RANK"), count * processes


def shard_suffix(share: tuple[int, int]) -> str:
    """What tells the files of one share from those of another; nothing where there is one.

    >>> shard_suffix((2, 64)), shard_suffix((0, 1))
    ('_3_of_64', '')
    """
    return f"_{share[0] + 1}_of_{share[1]}" if share[1] > 1 else ""


def end_with_torchrun() -> None:
    """End this process soon after torchrun's was killed, which otherwise leaves it working for nobody."""
    if not torch.distributed.is_torchelastic_launched():
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait_for_all() -> None:
    """Wait until all of torchrun's processes have come here: it ends them all when one ends with an error."""
    if torch.distributed.is_torchelastic_launched() and torchrun_number("WORLD_SIZE") > 1:
        join_processes(torch.device("cpu"))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def batch_share(batch_size: int, items: int, world_size: int) -> int:
    """Images of a batch for each of `world_size` processes.

    A batch is never larger than the data set, so that a small one still has a batch. Of such a small set up to
    `world_size` - 1 images sit out an epoch, other ones each time: shares must be equal, or the mean of the processes'
    gradients would not be the batch's gradient.

    Args:
        batch_size: of all processes together.
        items: in the data set.
        world_size: number of processes.

    Raises:
        ValueError: when the batch cannot be shared equally, or there are fewer items than processes.

    Example:
        >>> batch_share(8, 1000, 2), batch_share(8, 5, 2), batch_share(8, 5, 1)
        (4, 2, 5)
    """
    if batch_size < 1 or batch_size % world_size:
        raise UserError(
            "Expected `batch_size`, the images of all processes together, to be a multiple of their number "
            f"{world_size}, got {batch_size}."
        )
    _check_items(items, world_size)
    return max(1, min(batch_size, items) // world_size)


def item_share(items: int, rank: int, world_size: int) -> range:
    """Indices of one process's share, for work that is done once for each item, in order.

    Shares are neighbors and not interleaved, so that what is gathered from all processes has the order of the items;
    the DistributedSamplers of torch and MONAI interleave, and torch's doubles items where shares are unequal.

    Args:
        items: in the data set.
        rank: of the process.
        world_size: number of processes.

    Raises:
        ValueError: when there are fewer items than processes.

    Example:
        >>> [list(item_share(5, rank, 2)) for rank in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    _check_items(items, world_size)
    return range(items * rank // world_size, items * (rank + 1) // world_size)


def _check_items(items: int, world_size: int) -> None:
    if world_size > 1 and items < world_size:
        raise UserError(f"Expected at least one image for each of the {world_size} processes, got {items} images.")
