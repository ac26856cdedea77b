# SPDX-License-Identifier: Apache-2.0
"""A module's weights as a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["Fingerprint", "weights_checksum"]


class Fingerprint:
    """`weights_checksum` of a module, computed anew only after one of them was written to.

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
        # One value, so that a thread never sees the checksum of one state beside the writes of another.
        self._known: tuple[list[tuple[int, int]], str] = ([], "")

    def __call__(self, module: nn.Module) -> str:
        """The checksum in hexadecimal."""
        seen = [(tensor.data_ptr(), tensor._version) for tensor in _tensors(module)]
        known = self._known
        if seen != known[0]:
            self._known = known = (seen, weights_checksum(module))
        return known[1]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; torch's own iterators name them all, which would take a millisecond at each click."""
    modules = [module]
    while modules:
        part = modules.pop()
        yield from (tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None)
        modules += filter(None, part._modules.values())


def weights_checksum(module: nn.Module) -> str:
    """Checksum of a module's weights, whichever file they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
