# SPDX-License-Identifier: Apache-2.0
"""MONAI reader of single 2-D pictures: PNG, JPEG, BMP, TIFF, NIfTI and DICOM, frames of a cine among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_kdsam.data.datalist_file import listed_images
from monai_kdsam.data.paths import check_names, frame_path, is_supported, split_frame, supported_files
from monai_kdsam.data.picture_file import count_frames, decode
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.picture import no_geometry, to_rgb

__all__ = ["Image2DReader", "PixelsReader", "list_images"]


class Image2DReader(ImageReader):
    """Read one 2-D picture as the RGB that SAM expects, or one mask as it is stored.

    MONAI's own readers differ in axes, channels and range from format to format and know no frames of a cine.
    Arrays are (W, H, C), spatial axes (x, y) as with MONAI's readers. The affine (3, 3) is in RAS and millimetres; a
    picture without geometry lies in LPS (x to the left, y to the back), so ``Orientationd(axcodes="PL")`` gives
    (C, H, W), rows from the top and columns from the left. A DICOM file is such a picture with its pixel spacing
    (or that of its calibrated ultrasound region), a NIfTI file has the in-plane part of its own affine.

    A frame of a multi-frame DICOM or TIFF file is named in the stem, counted from 0: ``cine#frame3.dcm``,
    ``IM0001#frame3``.

    As an image the array is uint8 RGB in [0, 255]:

    - 8-bit values stay as they are, 1-bit becomes 0 and 255, grey is repeated, palette and CMYK are expanded;
    - transparent pixels are composited over black, so alpha is dropped where the picture is opaque;
    - anything else is mapped linearly to 0..255 and clipped: DICOM from its own window (the first VOI window, after
      rescaling; lookup tables are not used), everything else from its 0.5 to 99.5 percentiles,
      in which DICOM's padding values do not count;
    - MONOCHROME1 is inverted, last;
    - an EXIF orientation is not applied, because masks have none; where they differ, the check before a run tells.

    As a mask the values are labels, whole numbers: of a picture in one colour the maximum over red, green and blue,
    palette indices unless the palette is grey, 1-bit 0 and 255; what a NIfTI file's scale factor puts beside a whole
    number is rounded. Masks of several colours, in alpha, or of fractions are refused. Several files are channels of
    one mask.

    Files are decoded in :meth:`get_data` on purpose: `LoadImage` hides an error of :meth:`read` and falls back to
    readers with other conventions.

    Args:
        mask: read masks instead of images.

    Example:
        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged(keys="image", reader="monai_kdsam.data.Image2DReader")
        >>> load_label = LoadImaged(keys="label", reader=Image2DReader(mask=True))
    """

    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        self.mask = mask

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all files are of a supported format."""
        return all(is_supported(split_frame(name)[0]) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths; :meth:`get_data` opens them."""
        return tuple(str(name) for name in ensure_tuple(data))

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[Any, dict]:
        """Decode what :meth:`read` returned.

        Returns:
            tensor (W, H, 3) uint8, or array (W, H, K) of K mask files, and its metadata.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file is damaged, not a 2-D picture or of another size than the mask files beside it, or
                several files were given for one image.
        """
        paths = ensure_tuple(img)
        if len(paths) != 1 and not self.mask:
            raise UserError(f"Expected one file per image, got {len(paths)}: {', '.join(map(str, paths))}.")
        pictures = [decode(path, mask=self.mask) for path in paths]
        shapes = {picture.pixels.shape[:2] for picture in pictures}
        if len(shapes) > 1:
            raise UserError(f"Expected mask files of one size, got (H, W) {sorted(shapes)} in {', '.join(paths)}.")
        if self.mask:
            return _with_metadata(np.stack([picture.pixels for picture in pictures], axis=-1), pictures[0].affine)
        return _with_metadata(_as_tensor(to_rgb(pictures[0])), pictures[0].affine)


class PixelsReader(Image2DReader):
    """Gives LoadImage a picture that is in memory already, in place of a file.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__()
        self.pixels = pixels

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[Any, dict]:
        """The picture, without a geometry."""
        return _with_metadata(_as_tensor(self.pixels), no_geometry())


def _as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Pixels that LoadImage leaves as they lie: an array of turned axes it would copy, which takes half of its time."""
    return torch.from_numpy(np.require(pixels, requirements="W"))


def _with_metadata(rows_first: Any, affine: np.ndarray) -> tuple[Any, dict]:
    """Pixels (H, W, C) as MONAI's readers give them: (W, H, C), and the metadata that its transforms need."""
    array = rows_first.swapaxes(0, 1)
    return array, {
        MetaKeys.AFFINE: affine.copy(),
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:2]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: -1,
    }


def list_images(
    folder: str | Path, share: tuple[int, int] | None = None, *, without: Path | None = None
) -> list[dict[str, str]]:
    """List all pictures below a folder, sorted, as items ``{"image": path}`` with one item per frame.

    Files of unknown suffix count if they hold DICOM's magic number; hidden files do not. A damaged file is listed: to
    report it is the business of whoever reads it.

    Args:
        folder: of the pictures, or a datalist that names them.
        share: number and count: every count-th file alone, from that number on, for one of several processes.
        without: a folder below it that is passed over.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no picture, or, with a share, two whose masks would be one file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise MissingFileError(f"Expected a folder with images, or a datalist, but there is none at {folder}.")
    files = listed_images(folder) if folder.is_file() else supported_files(folder, below=True)
    if without is not None:
        files = [file for file in files if without.resolve() not in file.resolve().parents]
    if not files:
        raise UserError(f"No image in {folder}. Expected PNG, JPEG, BMP, TIFF, NIfTI (.nii, .nii.gz) or DICOM files.")
    if share is not None:
        check_names([{"image": file} for file in files])
        files = files[share[0] :: share[1]]  # before their frames are counted, for which each is opened
    return [{"image": str(path)} for file in files for path in _frames(file)]


def _frames(file: Path) -> list[Path]:
    if split_frame(file)[1] is not None:
        return [file]
    try:
        frames = count_frames(file)
    except ValueError:
        frames = 1
    return [file] if frames == 1 else [frame_path(file, frame) for frame in range(frames)]
