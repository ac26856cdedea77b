# SPDX-License-Identifier: Apache-2.0
"""Export a bundle to ONNX, OpenVINO and TorchScript, and check that the masks stay the same."""

from monai_kdsam.export.bundle import export_bundle

__all__ = ["export_bundle"]
