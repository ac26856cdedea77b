# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from monai_kdsam.data import Image2DReader, VolumeReader
from monai_kdsam.data.geometry import file_affine
from monai_kdsam.data.nifti import nifti_affine

TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("z", 40, degrees=True).as_matrix() * [0.7, 0.8, 2.5]
TURNED[:3, 3] = (-31, 20, 7)
STRAIGHT = np.diag([0.7, 0.8, 2.5, 1.0])


def write(path, shape, sform=None, qform=None, codes=(0, 0), units="mm"):
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 99, shape).astype(np.int16), None)
    image.header.set_zooms((0.7, 0.8, 2.5)[: len(shape)])
    if qform is not None:
        image.header.set_qform(qform, code=codes[1])
    if sform is not None:
        image.header.set_sform(sform, code=codes[0])
    image.header.set_xyzt_units(units)
    image.to_filename(path)
    return path


HEADERS = {
    "neither sform nor qform": {},
    "sform alone": {"sform": TURNED, "codes": (1, 0)},
    "qform alone": {"qform": TURNED, "codes": (0, 1)},
    "both, which differ": {"sform": TURNED, "qform": STRAIGHT, "codes": (1, 1)},
    "both, the sform aligned to an atlas": {"sform": TURNED, "qform": STRAIGHT, "codes": (2, 1)},
    "a sheared sform beside a qform": {"sform": TURNED + 0.2, "qform": STRAIGHT, "codes": (1, 1)},
    "mirrored": {"sform": TURNED * [-1, 1, 1, 1], "qform": TURNED * [-1, 1, 1, 1], "codes": (1, 1)},
    "micrometres": {"qform": TURNED, "codes": (0, 1), "units": "micron"},
    "metres": {"sform": TURNED, "qform": TURNED, "codes": (1, 1), "units": "meter"},
    "unknown units": {"sform": TURNED, "qform": TURNED, "codes": (1, 1), "units": "unknown"},
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("name", ["a.nii.gz", "A.NII"])
def test_a_voxel_lies_where_itk_and_slicer_put_it(tmp_path, header, name):
    path = write(tmp_path / name, (5, 6, 4), **HEADERS[header])
    itk = sitk.ReadImage(str(path), imageIO="NiftiImageIO")
    for index in ((0, 0, 0), (4, 5, 3)):
        expected = np.array(itk.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        for affine in (nifti_affine(path), file_affine(str(path)), VolumeReader().get_data((str(path),))[1]["affine"]):
            np.testing.assert_allclose((affine @ [*index, 1])[:3], expected, rtol=1e-5, atol=1e-5)


def test_a_picture_without_codes_is_not_mirrored(tmp_path):
    path = write(tmp_path / "a.nii", (5, 6, 1))
    _, meta = Image2DReader().get_data((str(path),))
    np.testing.assert_allclose(np.diag(meta["affine"])[:2], [-0.7, -0.8], atol=1e-6)


def test_a_sheared_picture_is_told(tmp_path):
    sheared = STRAIGHT.copy()
    sheared[0, 1] = 0.3
    path = write(tmp_path / "a.nii", (5, 6), sform=sheared, codes=(1, 0))
    with pytest.raises(ValueError, match=r"sheared or singular: .*right angles only"):
        Image2DReader().get_data((str(path),))
