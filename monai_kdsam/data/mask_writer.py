# SPDX-License-Identifier: Apache-2.0
"""Masks of pictures as files, by MONAI's SaveImage."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import ImageWriter
from PIL import Image

from monai_kdsam.data.geometry import file_affine
from monai_kdsam.data.paths import suffix_of
from monai_kdsam.errors import UserError
from monai_kdsam.files import ROOM, replacing

__all__ = ["MaskWriter", "check_mask_format"]

PICTURES = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
VOLUMES = (".nii.gz", ".nii")


def check_mask_format(output_ext: str) -> str:
    """The extension, if masks can be written in its format; else a ValueError that lists those that can.

    JPEG is none of them: it changes the values of a mask.
    """
    if output_ext not in (*PICTURES, *VOLUMES):
        raise UserError(f"Expected `output_ext` among {', '.join((*PICTURES, *VOLUMES))}, got {output_ext!r}.")
    return output_ext


class MaskWriter(ImageWriter):
    """Writes a mask (1, W, H) of a picture: 0 and 255 in PNG, BMP and TIFF; 0 and 1 in NIfTI, where the picture lies.

    MONAI's writers fail on a NIfTI file of two dimensions, and have no geometry for pictures whose reader is not
    theirs. The mask becomes a volume of one slice with the affine of the picture's file. A file is replaced whole.
    """

    def set_data_array(self, data_array: Any, **_: Any) -> None:
        """Take the mask."""
        self.mask = np.asarray(data_array)[0] > 0

    def set_metadata(self, meta_dict: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Take the name of the picture's file."""
        self.source = str((meta_dict or {})["filename_or_obj"])

    def write(self, filename: Any, verbose: bool = True, **_: Any) -> None:
        """Write in the format that the name says."""
        path = Path(filename)
        suffix = suffix_of(path)
        with replacing(path, ROOM) as unfinished:
            if suffix in PICTURES:
                Image.fromarray(self.mask.T.astype(np.uint8) * 255).save(unfinished, format=PICTURES[suffix])
                return
            image = nibabel.Nifti1Image(self.mask[..., None].astype(np.uint8), file_affine(self.source))
            image.set_qform(image.affine, code="scanner")
            image.set_sform(image.affine, code="scanner")
            image.header.set_xyzt_units("mm")
            content = image.to_bytes()
            unfinished.write_bytes(gzip.compress(content, mtime=0) if suffix == ".nii.gz" else content)
