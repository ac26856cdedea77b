# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from monai_kdsam.deploy.sources import group_sources

pydicom = pytest.importorskip("pydicom")


def sample(name="MR_small.dcm", **changes):
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def test_slices_are_stacked_along_their_normal_and_other_images_stand_alone():
    along = [0, 1, 0, 0, 0, -1]  # coronal: the normal points to -x
    slices = [sample(ImageOrientationPatient=along, ImagePositionPatient=[x, 0, 5]) for x in (3, 1, 2)]
    other = sample(ImagePositionPatient=[0, 0, 0])
    cine = sample("SC_rgb_rle_2frame.dcm")
    sources = group_sources([slices[0], cine, other, *slices[1:]])
    assert [[float(i.ImagePositionPatient[0]) for i in source.instances] for source in sources[:2]] == [[3, 2, 1], [0]]
    assert [frame.number for frame in sources[2].frames] == [1, 2]
    assert sources[2].frames[1].path.endswith("SC_rgb_rle_2frame#frame1.dcm")


def test_images_that_are_all_at_one_place_stand_alone():
    stills = [sample(SOPInstanceUID=f"1.2.{k}", ImagePositionPatient=[0, 0, 0]) for k in range(4)]
    assert [source.uid for source in group_sources(stills)] == ["1.2.0", "1.2.1", "1.2.2", "1.2.3"]


@pytest.mark.parametrize(("noise", "stacks"), [(2e-7, 1), (1e-3, 2)])
def test_noise_in_the_orientation_splits_no_series(noise, stacks):
    # Where rounding would turn from one digit to the next.
    slices = [
        sample(ImageOrientationPatient=[1, 0.00005 + k % 2 * noise, 0, 0, 1, 0], ImagePositionPatient=[0, 0, k])
        for k in range(6)
    ]
    slices[0].ImageOrientationPatient[1] -= 1e-7
    found = group_sources(slices)
    assert len(found) == stacks


def test_instances_without_pixels_are_left_out():
    report = sample()
    del report.PixelData
    assert group_sources([report]) == []
