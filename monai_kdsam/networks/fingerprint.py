# SPDX-License-Identifier: Apache-2.0
"""A module's weights as a checksum."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["Fingerprint"]


class Fingerprint:
    """SHA-256 of a module's parameters and buffers, computed anew only after one of them was written to.

    torch counts writes to a tensor in its `_version`; moving or casting a module gives it other memory. (What writes
    through `.data` or another process's view is not counted.)

    Example:
        >>> module, fingerprint = nn.Linear(2, 2), Fingerprint()
        >>> before = fingerprint(module)
        >>> _ = module.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
        >>> fingerprint(module) == before
        False
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, int]] = []
        self._checksum = ""

    def __call__(self, module: nn.Module) -> str:
        """The checksum in hexadecimal."""
        tensors = [*module.parameters(), *module.buffers()]
        seen = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if seen != self._seen:
            self._checksum, self._seen = _checksum(tensors), seen
        return self._checksum


def _checksum(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()
