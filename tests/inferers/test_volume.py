# SPDX-License-Identifier: Apache-2.0
"""The 3-D bundle as a Python object, beside the 2-D bundle with the same weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from PIL import Image

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.inferers import BundlePredictor, VolumeInferer
from monai_kdsam.networks import VolumeKDSAM, build_student, build_volume_student

SIZE, SHAPE = 64, (40, 56, 6)
# x to the left, y to the back, as pictures lie; spacing and origin are a scanner's.
PICTURE_LIKE = np.array([[-0.8, 0, 0, 9.5], [0, -0.8, 0, -3.25], [0, 0, 2.5, 40], [0, 0, 0, 1]])
CLICK = {"foreground": [[12, 30, 3]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both bundles with one random student, and a volume of pictures, gray values 0 to 255."""
    folder = tmp_path_factory.mktemp("volumes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_student("resnet18", image_size=SIZE).state_dict()
    for name in ("kdsam_deepgrow_2d", "kdsam_deepgrow_3d"):
        bundle = copy_bundle(
            folder,
            name,
            settings={"backbone": "resnet18", "image_size": SIZE, "prompt_map": False, "fine_features": False},
        )
        torch.save(weights, bundle / "models" / "model.pt")
    pixels = np.stack([make_phantom("breast_lesion", size=80, seed=k)[0][:56, :40, 0] for k in range(6)], axis=-1)
    pixels[0, 0, 0], pixels[-1, -1, -1] = 0, 255
    values = np.swapaxes(pixels, 0, 1)
    (folder / "data").mkdir()
    nibabel.Nifti1Image(values, PICTURE_LIKE).to_filename(folder / "data" / "v.nii.gz")
    Image.fromarray(pixels[..., 3]).save(folder / "slice.png")
    return folder


@pytest.fixture(scope="module")
def predict(folder):
    return BundlePredictor(folder / "kdsam_deepgrow_3d", percentiles=[0, 100])


@pytest.mark.parametrize(
    ("in_volume", "in_slice"),
    [
        (CLICK, {"foreground": [[12, 30]]}),
        (CLICK | {"background": [[30, 8, 3]]}, {"foreground": [[12, 30]], "background": [[30, 8]]}),
        ({"roi": [5, 30, 8, 44, 3, 3]}, {"roi": [5, 8, 30, 44]}),
        ({}, {}),
    ],
)
def test_a_slice_gets_the_mask_that_the_2d_bundle_gives_it_as_a_picture(folder, predict, in_volume, in_slice):
    expected = BundlePredictor(folder / "kdsam_deepgrow_2d", fill_holes=False)(folder / "slice.png", **in_slice)
    found = predict(folder / "data" / "v.nii.gz", **in_volume)
    assert found.shape == SHAPE
    np.testing.assert_array_equal(found[..., 3].T, expected)
    others = np.delete(found, 3, axis=2)
    assert others.any() == (not in_slice)


@pytest.mark.parametrize("propagate", [False, True])
def test_a_background_click_alone_leaves_all_of_the_volume_empty(predict, folder, propagate):
    assert not predict(folder / "data" / "v.nii.gz", background=[[30, 8, 3]], propagate=propagate).any()


@pytest.mark.parametrize("name", ["kdsam_deepgrow_2d", "kdsam_deepgrow_3d"])
def test_threads_get_the_answers_that_one_gets(folder, tmp_path, name):
    """Of images that they share, and of images of their own, from memories that are empty at first."""
    files, flat = [], name.endswith("2d")
    for number, axis in enumerate((0, 1, None)):
        values = nibabel.load(folder / "data" / "v.nii.gz").get_fdata().astype(np.uint8)
        values = values if axis is None else np.flip(values, axis)
        files.append(tmp_path / (f"{number}.png" if flat else f"{number}.nii.gz"))
        if flat:
            Image.fromarray(values[..., 3]).save(files[-1])
        else:
            nibabel.Nifti1Image(values, PICTURE_LIKE).to_filename(files[-1])
    where = [] if flat else [3]
    asked = [(file, [8 + 4 * number, 12 + number, *where]) for number in range(6) for file in files]

    alone, shared = BundlePredictor(folder / name), BundlePredictor(folder / name)
    masks = [alone(file, foreground=[click]) for file, click in asked]
    assert len({mask.tobytes() for mask in masks}) > 12
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda one: shared(one[0], foreground=[one[1]]), asked)
        for found, expected in zip(together, masks, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_propagation_reaches_other_slices_and_leaves_the_prompted_one(folder, predict):
    volume = folder / "data" / "v.nii.gz"
    alone, carried = predict(volume, **CLICK), predict(volume, **CLICK, propagate=True)
    np.testing.assert_array_equal(alone[..., 3], carried[..., 3])
    assert np.delete(carried, 3, axis=2).any()


def test_clicks_that_are_added_on_a_slice_go_on_from_the_last_answer_there(folder):
    predict = BundlePredictor(folder / "kdsam_deepgrow_3d")
    given_masks, answered, predict_all = [], [], predict.network.predict_all

    def remember(*given):
        given_masks.append(given[3] if len(given) > 3 else None)
        answered.append(predict_all(*given))
        return answered[-1]

    predict.network.predict_all = remember

    def ask(who="me", propagate=False, **prompt):
        given_masks.clear()
        volume = predict._load(str(folder / "data" / "v.nii.gz"), {**prompt, "propagate": propagate})["image"]
        volume.meta["asked_by"] = who
        with torch.no_grad():
            predict.inferer(volume[None], predict.network)
        return list(given_masks)

    more = {**CLICK, "background": [[30, 8, 3]]}
    assert ask(**CLICK) == [None]
    last = answered[-1][2]
    (found,) = ask(**more)
    assert found is last
    assert ask("you", **more) == [None]
    found, *carried = ask(**more, propagate=True)
    assert found is last
    assert carried
    assert not any(mask is not None for mask in carried)
    assert ask(foreground=[[12, 30, 2]], background=[[30, 8, 2]]) == [None]


def turned(axes, flips):
    """The volume and its click with other axes of the array, in the same place of the patient."""
    order = nibabel.orientations.axcodes2ornt("LPS")[list(axes)]
    order[:, 1] *= np.where(flips, -1, 1)
    return order


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (1, 0, 1)), ((2, 0, 1), (0, 1, 0)), ((1, 2, 0), (1, 1, 1))])
def test_permuted_and_flipped_files_get_the_same_mask_in_their_own_axes(folder, predict, tmp_path, axes, flips):
    original = nibabel.load(folder / "data" / "v.nii.gz")
    file = original.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(original.affine), turned(axes, flips))
    )
    file.to_filename(tmp_path / "turned.nii.gz")
    voxel = np.linalg.inv(file.affine) @ original.affine @ [*CLICK["foreground"][0], 1]
    found = predict(tmp_path / "turned.nii.gz", foreground=[voxel[:3].round().tolist()], propagate=True)
    assert found.shape == file.shape
    back = nibabel.Nifti1Image(found, file.affine).as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(file.affine), nibabel.orientations.io_orientation(original.affine)
        )
    )
    expected = predict(folder / "data" / "v.nii.gz", **CLICK, propagate=True)
    np.testing.assert_array_equal(np.asarray(back.dataobj), expected)


def test_each_slice_is_encoded_once_however_often_it_is_prompted(folder, monkeypatch):
    predict = BundlePredictor(folder / "kdsam_deepgrow_3d")
    calls = []
    encode = VolumeKDSAM.encode
    monkeypatch.setattr(VolumeKDSAM, "encode", lambda self, image: calls.append(1) or encode(self, image))
    predict(folder / "data" / "v.nii.gz")
    assert len(calls) == SHAPE[2]
    for prompt in (CLICK, CLICK | {"background": [[30, 8, 3]]}, {"roi": [5, 30, 8, 44, 1, 5]}):
        predict(folder / "data" / "v.nii.gz", **prompt, propagate=True)
    assert len(calls) == SHAPE[2]


def test_the_bundle_runs_on_a_folder_and_writes_masks_where_the_volumes_lie(folder, tmp_path):
    bundle = folder / "kdsam_deepgrow_3d"
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        dataset_dir=str(folder / "data"),
        output_dir=str(tmp_path / "masks"),
        progress=False,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    found, image = (
        sitk.ReadImage(str(tmp_path / "masks" / "v_mask.nii.gz")),
        sitk.ReadImage(str(folder / "data" / "v.nii.gz")),
    )
    assert found.GetSize() == image.GetSize()
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, name)(), getattr(image, name)(), atol=1e-5)
    expected = BundlePredictor(bundle)(folder / "data" / "v.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, expected)


def test_a_volume_as_the_networks_input_is_segmented_slice_by_slice():
    network = build_volume_student(backbone="resnet18", image_size=SIZE).eval()
    volume = torch.randn(2, 3, SIZE, SIZE, 2)
    with torch.no_grad():
        found = network(volume)
        for k in range(2):
            torch.testing.assert_close(found[..., k], network(volume[..., k]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -1}, "Expected `margin` to be 0 or more"),
        ({"min_overlap": 2}, "Expected `min_overlap` within 0 and 1"),
    ],
)
def test_a_mistaken_setting_is_told(settings, message):
    with pytest.raises(ValueError, match=message):
        VolumeInferer(**{"prepare": [], "margin": 0.1, "min_overlap": 0.5} | settings)


def test_several_volumes_at_once_are_told():
    infer = VolumeInferer(prepare=[], margin=0.1, min_overlap=0.5)
    with pytest.raises(ValueError, match=r"Expected `inputs` of shape \(1, C, H, W, D\), got \(2, 1, 4, 4, 4\)"):
        infer(MetaTensor(torch.zeros(2, 1, 4, 4, 4)), None)
