# SPDX-License-Identifier: Apache-2.0
"""Predict from exported files with NumPy, Pillow and ONNX Runtime or OpenVINO: nothing here imports torch or MONAI."""

from monai_kdsam.runtime.encoded_image import EncodedImage
from monai_kdsam.runtime.predictor import Predictor

__all__ = ["EncodedImage", "Predictor"]
