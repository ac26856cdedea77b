# SPDX-License-Identifier: Apache-2.0
"""Distill the Segment Anything Model into a small promptable network of a hospital's own images, in MONAI."""

import os
import sys

__version__ = "0.1.0"


def _send_no_telemetry() -> None:
    """Keep libraries that tell their makers of each use from doing so, once this package is imported before them.

    A hospital has not agreed to that. OpenVINO and NNCF send events to Google Analytics on import and on use, unless
    their package for it is absent. They fork for it, at which a thread that multiplies matrices may hang.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what an absent one looks like
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


_send_no_telemetry()
