# SPDX-License-Identifier: Apache-2.0
"""Distill the Segment Anything Model into a small promptable network of a hospital's own images, in MONAI."""

__version__ = "0.1.0"
