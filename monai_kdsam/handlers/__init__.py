# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks."""

from monai_kdsam.handlers.case_report import CaseReport
from monai_kdsam.handlers.early_stop import EarlyStop
from monai_kdsam.handlers.embedding_saver import EmbeddingSaver
from monai_kdsam.handlers.epoch_log import EpochLog
from monai_kdsam.handlers.overlays import Overlays
from monai_kdsam.handlers.process_mean import ProcessMean
from monai_kdsam.handlers.replace_if_better import ReplaceIfBetter
from monai_kdsam.handlers.resume import BestWeightsSaver, EpochSeed, ResumeHandler
from monai_kdsam.handlers.tensorboard_log import TensorBoardLog

__all__ = [
    "BestWeightsSaver",
    "CaseReport",
    "EarlyStop",
    "EmbeddingSaver",
    "EpochLog",
    "EpochSeed",
    "Overlays",
    "ProcessMean",
    "ReplaceIfBetter",
    "ResumeHandler",
    "TensorBoardLog",
]
