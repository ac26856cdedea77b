# SPDX-License-Identifier: Apache-2.0
"""Evaluation that can be believed: several prompts, intervals, baselines, calibration: docs/howto/report.md."""

from monai_kdsam.report.fill_box import FillBox
from monai_kdsam.report.report import write_report

__all__ = ["FillBox", "write_report"]
