# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_kdsam.transforms import GrayValuesd, SlicesLastd
from monai_kdsam.transforms.slicing import through_plane_axis

SHAPE = (5, 6, 7)
SPACING = np.array([0.8, 0.8, 3.0])


def volume(affine: np.ndarray) -> MetaTensor:
    values = torch.arange(np.prod(SHAPE), dtype=torch.int32).reshape(1, *SHAPE)
    return MetaTensor(values, affine=affine, meta={"original_affine": affine.copy(), "spatial_shape": SHAPE})


def stored_as(order, signs) -> np.ndarray:
    """Affine of a volume whose axes run along these axes of the patient."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (along, sign) in enumerate(zip(order, signs, strict=True)):
        affine[along, axis] = sign * SPACING[axis]
    affine[:3, 3] = (3.5, -20, 11)
    return affine


def oblique(degrees: float) -> np.ndarray:
    affine = np.diag([*SPACING, 1.0])
    affine[:3, :3] = (
        Rotation.from_euler("xyz", [degrees, degrees / 2, degrees], degrees=True).as_matrix() @ affine[:3, :3]
    )
    return affine


AFFINES = [
    *(
        stored_as(order, signs)
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ),
    *(oblique(degrees) for degrees in (10, 45, 90, 130)),
]


@pytest.mark.parametrize("axis", ["acquisition", "axial", "coronal", "sagittal"])
def test_axes_and_affine_come_back_from_any_orientation(axis):
    transform = SlicesLastd("image", axis=axis)
    for affine in AFFINES:
        image = volume(affine)
        back = transform.inverse(transform({"image": image}))["image"]
        np.testing.assert_array_equal(back.numpy(), image.numpy())
        np.testing.assert_allclose(back.affine.numpy(), affine)


def test_the_acquisitions_slices_are_cut_however_the_file_stores_them():
    for affine in AFFINES:
        stack = SlicesLastd("image")({"image": volume(affine)})["image"]
        assert stack.shape[-1] == SHAPE[2]


@pytest.mark.parametrize(("axis", "codes"), [("axial", "PLS"), ("coronal", "ILP"), ("sagittal", "IPL")])
def test_slices_lie_as_radiologists_see_them(axis, codes):
    for affine in AFFINES[:48]:
        stack = SlicesLastd("image", axis=axis)({"image": volume(affine)})["image"]
        assert "".join(nibabel.aff2axcodes(stack.affine.numpy())) == codes


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((1, 1, 1), 2),
        ((1, 1, 3), 2),
        ((3, 1, 1), 0),
        ((0.9, 0.6, 0.9), 1),
        ((0.5, 0.7, 3), 2),
        ((1, 1.0002, 0.9999), 2),
    ],
)
def test_the_odd_spacing_is_across_the_slices(spacing, axis):
    turned = Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix() @ np.diag(spacing)
    assert through_plane_axis(turned) == axis


def gray(values, dicom: str = "", **settings) -> np.ndarray:
    image = MetaTensor(torch.as_tensor(values), meta={"modality": dicom})
    found = GrayValuesd("image", **settings)({"image": image})["image"]
    assert found.dtype == torch.uint8
    return found.numpy()


def test_ct_is_seen_through_its_window():
    hounsfield = np.array([[-1024.0, -160, 40, 140, 240, 3000]])
    expected = [[0, 0, 128, 191, 255, 255]]
    assert gray(hounsfield).tolist() == expected
    without_air = hounsfield[:, 1:]
    assert gray(without_air, "CT").tolist() == gray(without_air, modality="ct").tolist() == [expected[0][1:]]
    assert gray(without_air).tolist() != [expected[0][1:]]
    assert gray(hounsfield, level=-600, width=1500).tolist() == [[55, 202, 236, 253, 255, 255]]


@pytest.mark.parametrize(
    "values", [np.arange(1001.0)[None], np.arange(1001)[None] * 358.2, np.arange(1001.0)[None] / 77 - 6]
)
def test_other_volumes_are_scaled_by_percentiles(values):
    found = gray(values)[0]
    assert (found[5], found[995]) == (0, 255)
    assert abs(int(found[500]) - 128) <= 1


def test_dicoms_modality_is_believed_before_the_values():
    values = np.linspace(-1000, 1000, 101).round()[None]
    assert gray(values, "MR")[0, 50] == 128
    assert gray(values, "CT")[0, 50] == 102


def test_where_nearly_all_is_background_the_extremes_are_scaled():
    values = np.zeros((1, 1000))
    values[0, :4] = 250, 306, 363, 532
    assert gray(values)[0, :5].tolist() == [120, 147, 174, 255, 0]


def test_a_constant_volume_is_no_error():
    assert gray(np.full((1, 4), 7.0)).shape == (1, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modality": "xray"}, "Expected `modality` to be auto, ct or other, got 'xray'"),
        ({"width": 0}, "Expected `width` of the window to be above 0, got 0"),
        ({"percentiles": (99, 1)}, "Expected `percentiles` to rise within 0 and 100"),
    ],
)
def test_a_mistaken_setting_is_told(settings, message):
    with pytest.raises(ValueError, match=message):
        GrayValuesd("image", **settings)


def test_an_unknown_axis_is_told():
    with pytest.raises(ValueError, match="Expected `axis` to be acquisition, sagittal, coronal, axial, got 'z'"):
        SlicesLastd("image", axis="z")


def test_padding_does_not_count_in_the_percentiles():
    values = torch.arange(120.0).reshape(1, 4, 5, 6)
    padded = torch.cat([values, torch.full((1, 40, 5, 6), -2000.0)], dim=1)
    image = MetaTensor(padded, meta={"padding": (-2000.0, -2000.0), "modality": "MR"})
    scaled = GrayValuesd("image")({"image": image})["image"]
    plain = GrayValuesd("image")({"image": MetaTensor(values, meta={"modality": "MR"})})["image"]
    assert torch.equal(scaled[:, :4].as_tensor(), plain.as_tensor())
    assert not scaled[:, 4:].any()
