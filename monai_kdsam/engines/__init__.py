# SPDX-License-Identifier: Apache-2.0
"""What enters MONAI's stock trainers: targets that a teacher gives, and prompts that are corrected."""

from monai_kdsam.engines.click_simulation import add_corrective_click, error_depth
from monai_kdsam.engines.correction_loop import CorrectionLoop, TeacherLoop
from monai_kdsam.engines.prepare_batch import MosaicPrepareBatch, PromptedTeacherPrepareBatch, TeacherPrepareBatch

__all__ = [
    "CorrectionLoop",
    "MosaicPrepareBatch",
    "PromptedTeacherPrepareBatch",
    "TeacherLoop",
    "TeacherPrepareBatch",
    "add_corrective_click",
    "error_depth",
]
