# SPDX-License-Identifier: Apache-2.0
"""DICOM: images decoded, headers that are derived from others, segmentations written."""
