# SPDX-License-Identifier: Apache-2.0
"""What the stock engines are given to distill."""

from monai_kdsam.engines.prepare_batch import TeacherPrepareBatch

__all__ = ["TeacherPrepareBatch"]
