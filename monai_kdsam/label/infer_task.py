# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's inference task: all of a bundle's weights, or no answer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import device_list

from monai_kdsam.errors import UserError
from monai_kdsam.networks import load_weights

__all__ = ["CheckedInferTask", "check_device"]


def check_device(device: Any) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: with those that it has.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = list(dict.fromkeys([*device_list(), "cpu", "cuda", *gpus]))
    if device is not None and (device[0] if isinstance(device, list) and device else device) not in known:
        raise UserError(f"Expected `device` among {', '.join(known)}, got {device!r}.")


class CheckedInferTask(BundleInferTask):
    """The server's own task, which answers with random weights where a file is missing or does not fit.

    This one loads all of the weights or refuses, and knows a file that was replaced from its predecessor.
    """

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda") -> dict[str, Any]:
        """As ever, with who asks in the image's metadata, for `PromptedInferer`, which gets nothing else."""
        data[self.input_key].meta["asked_by"] = data.get("asked_by")
        result: dict[str, Any] = super().run_inferer(data, convert_to_batch, device)
        return result

    def _get_network(self, device: str, data: Mapping[str, Any] | None) -> torch.nn.Module:
        """The network on a device.

        Raises:
            HTTPException: 503, when there are no weights or they are not this network's.
        """
        path = Path(self.path[0])
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if device not in self._networks or self._networks[device][1] != stamp:
                # The true file: what lies beside it counts, too.
                settings = self.bundle_config.get("trained_with") and self.bundle_config.get_parsed_content(
                    "trained_with"
                )
                loaded = load_weights(copy.deepcopy(self.network), path.resolve(), settings)
                self._networks[device] = (loaded.to(torch.device(device)).eval(), stamp)
        except (OSError, ValueError) as error:
            self._networks.pop(device, None)
            reason = "model.pt is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise HTTPException(503, f"The model cannot answer: {reason}.") from error
        network: torch.nn.Module = self._networks[device][0]
        return network
