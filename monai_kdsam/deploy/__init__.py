# SPDX-License-Identifier: Apache-2.0
"""A trained bundle as a MONAI Deploy application: DICOM in, DICOM segmentations out."""

__all__ = ["MODALITIES"]

# Segmented unless told otherwise: ultrasound, MR, CT, secondary capture, endoscopy, photographs, dermoscopy.
MODALITIES = ("US", "MR", "CT", "OT", "ES", "XC", "DMS")
