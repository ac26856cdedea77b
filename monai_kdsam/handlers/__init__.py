# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks."""

from monai_kdsam.handlers.case_report import CaseReport
from monai_kdsam.handlers.resume import BestWeightsSaver, EpochSeed, ResumeHandler

__all__ = ["BestWeightsSaver", "CaseReport", "EpochSeed", "ResumeHandler"]
