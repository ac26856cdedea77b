# SPDX-License-Identifier: Apache-2.0
"""A trained bundle as a MONAI Deploy application: DICOM in, DICOM segmentations out."""
