# SPDX-License-Identifier: Apache-2.0
"""Volumes in the released MONAI Label server, against direct calls of the bundle.

Needs the environment of the extra `label`; `nox -s label` builds it.
"""

from __future__ import annotations

import importlib.util
import json
import re

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_kdsam.data.volume_reader import series_files
from monai_kdsam.inferers import BundlePredictor

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

from hosts.label_server import MODEL, random_bundle, running_server

VOLUMES = "kdsam_deepgrow_3d"
SIZE = 128
PROMPTS = {
    "a click": {"foreground": [[18, 25, 14]]},
    "a click, propagated": {"foreground": [[18, 25, 14]], "propagate": True},
    "a box, propagated": {"roi": [28, 8, 10, 40, 5, 20], "propagate": True},
    "clicks on two slices": {
        "foreground": [[18, 25, 10], [16, 20, 18]],
        "background": [[30, 5, 12]],
        "propagate": True,
    },
    "nothing": {},
}


@pytest.fixture(scope="module")
def studies(real_data, tmp_path_factory):
    """The first hippocampus as it is, turned askew, and with its axes permuted and flipped; and what is no volume."""
    folder = tmp_path_factory.mktemp("studies")
    image = nibabel.load(min((real_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz")))
    image.to_filename(folder / "plain.nii.gz")
    values = np.asarray(image.dataobj)
    askew = np.diag([0.9, 1.1, 2.5, 1.0])
    askew[:3, :3] = Rotation.from_euler("xyz", [20, -35, 48], degrees=True).as_matrix() @ askew[:3, :3]
    askew[:3, 3] = (-31.5, 20.25, 7)
    nibabel.Nifti1Image(values, askew).to_filename(folder / "askew.nii.gz")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    turned.to_filename(folder / "turned.nii.gz")
    nibabel.Nifti1Image(np.stack([values, values], axis=-1), np.eye(4)).to_filename(folder / "time.nii.gz")
    nibabel.Nifti1Image(values[..., 0], np.eye(4)).to_filename(folder / "flat.nii.gz")
    nibabel.Nifti1Image(np.where(values > values.mean(), np.nan, values), np.eye(4)).to_filename(folder / "nan.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "plain.nii.gz").read_bytes()[:20_000])
    Image.fromarray(np.uint8(np.arange(64 * 64).reshape(64, 64) % 251)).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    flat, volumes = (random_bundle(folder, "resnet18", SIZE, name=name) for name in (MODEL, VOLUMES))
    with running_server(volumes, studies, folder, flat) as running:
        yield running
        assert running.process.poll() is None, "the server died on the way"


@pytest.fixture(scope="module")
def predict(server):
    return BundlePredictor(server.bundle)


def asked(server, image, params, file=None):
    return server.post(str(image), params, file=file, model=VOLUMES, output="image")


def saved(answer, path):
    assert answer.status_code == 200, answer.text
    path.write_bytes(answer.content)
    return sitk.ReadImage(str(path))


def assert_same_place(found: sitk.Image, image: sitk.Image) -> None:
    assert found.GetSize() == image.GetSize()
    np.testing.assert_allclose(found.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(found.GetSpacing(), image.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(found.GetDirection(), image.GetDirection(), atol=1e-5)


def test_clients_see_a_model_for_volumes_beside_the_one_for_pictures(server):
    models = requests.get(f"{server.address}/info/", timeout=30).json()["models"]
    assert (models[VOLUMES]["type"], models[VOLUMES]["dimension"]) == ("deepgrow", 3)
    assert models[VOLUMES]["config"]["propagate"] is False
    assert models[MODEL]["dimension"] == 2


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_mask_is_that_of_a_direct_call_in_the_geometry_of_the_file(server, predict, studies, tmp_path, prompt):
    found = saved(asked(server, "plain", PROMPTS[prompt]), tmp_path / "mask.nii.gz")
    image = nibabel.load(studies / "plain.nii.gz")
    expected = predict(studies / "plain.nii.gz", **PROMPTS[prompt])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, expected)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    slices = np.flatnonzero(expected.any(axis=(0, 1)))
    assert slices.tolist() == [14] if prompt == "a click" else len(slices) > 1


@pytest.mark.parametrize("name", ["askew", "turned"])
def test_oblique_permuted_and_flipped_files_get_their_geometry_back(server, predict, studies, tmp_path, name):
    file = studies / f"{name}.nii.gz"
    prompt = {"foreground": [[14, 20, 16]], "propagate": True}
    found = saved(asked(server, name, prompt), tmp_path / "mask.nii.gz")
    assert_same_place(found, sitk.ReadImage(str(file)))
    np.testing.assert_allclose(nibabel.load(tmp_path / "mask.nii.gz").affine, nibabel.load(file).affine, atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, predict(file, **prompt))


def test_a_dicom_series_is_named_by_its_folder_and_gets_its_geometry_back(
    server, predict, studies, real_data, tmp_path
):
    folder = next((real_data / "dicom-mr").iterdir())
    (studies / "series").symlink_to(folder)
    found = saved(asked(server, "series", PROMPTS["a click, propagated"]), tmp_path / "mask.nrrd")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in series_files(folder)])
    assert_same_place(found, reader.Execute())
    expected = predict(folder, **PROMPTS["a click, propagated"])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, expected)


def test_a_cine_is_a_volume_of_frames(server, predict, studies, real_data, tmp_path):
    file = studies / "cine.dcm"
    file.symlink_to(real_data / "dicom-us" / "examples_ybr_color.dcm")
    prompt = {"foreground": [[150, 120, 4]], "roi": [90, 210, 60, 180, 3, 6], "propagate": True}
    found = saved(asked(server, file, prompt), tmp_path / "mask.nrrd")
    assert_same_place(found, sitk.ReadImage(str(file)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, predict(file, **prompt))


def test_the_request_of_3d_slicer(server, predict, studies, tmp_path):
    """As its module's onClickDeepgrow builds it for a model of three dimensions."""
    params = {
        "label": "structure",
        "foreground": [[18, 25, 14]],
        "background": [[30, 5, 14]],
        "device": "cpu",
        "model_filename": "model.pt",
        "propagate": True,
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "client_id": "user-xyz",
    }
    content = (studies / "plain.nii.gz").read_bytes()
    for file in (None, ("upload.nii.gz", content)):
        found = saved(asked(server, "" if file else "plain", params, file), tmp_path / "mask.nrrd")
        assert_same_place(found, sitk.ReadImage(str(studies / "plain.nii.gz")))
        expected = predict(
            studies / "plain.nii.gz", **{key: params[key] for key in ("foreground", "background", "propagate")}
        )
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, expected)


BAD = {
    "a picture": ("picture", {"foreground": [[3, 3, 0]]}, "is no volume: .*kdsam_deepgrow_2d"),
    "one slice": ("flat", {"foreground": [[3, 3, 0]]}, "is a 2-D picture"),
    "a time series": ("time", {"foreground": [[3, 3, 0]]}, "no single volume"),
    "NaN": ("nan", {"foreground": [[3, 3, 0]]}, "contains NaN"),
    "a damaged file": ("cut", {"foreground": [[3, 3, 0]]}, "damaged, incomplete"),
    "a click without a slice": ("plain", {"foreground": [[3, 3]]}, r"Expected clicks \[i, j, k\] in `foreground`"),
    "a click outside": ("plain", {"foreground": [[3, 3, 500]]}, "Expected `foreground` within the volume of"),
    "NaN as a coordinate": ("plain", {"foreground": [[3, float("nan"), 5]]}, "Expected finite numbers"),
    "a box of no area": ("plain", {"roi": [3, 3, 5, 9, 2, 8]}, "a box with an area"),
    "a word for propagate": ("plain", {"propagate": "perhaps"}, "Expected `propagate` to be true or false"),
    "a mask as PNG": ("plain", {"foreground": [[3, 3, 3]], "result_extension": ".png"}, "a format for volumes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_explained_and_the_server_goes_on(server, name):
    image, params, message = BAD[name]
    answer = asked(server, image, params)
    assert answer.status_code == 400
    detail = answer.json()["detail"]
    assert re.search(message, detail), detail
    assert "Traceback" not in detail
    assert asked(server, "plain", PROMPTS["a click"]).status_code == 200


def test_a_later_click_neither_loads_the_volume_nor_encodes_its_slices_again(server, studies, real_data):
    """With and without the option that makes the server build its transforms anew."""
    file = studies / "other.nii.gz"
    file.symlink_to(sorted((real_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[1])
    first, second = (
        times(server, file, {**PROMPTS["a click, propagated"], "background": [[30, 5, k]]}) for k in (13, 15)
    )
    assert second["transform"]["pre"]["RememberedImaged"] < first["transform"]["pre"]["RememberedImaged"]
    assert second["infer"] < 0.7 * first["infer"]


def times(server, image, params) -> dict:
    answer = server.post(str(image), params, model=VOLUMES, output="json")
    return json.loads(answer.text)["latencies"]


def test_the_bundle_for_pictures_is_served_as_before(server, studies, tmp_path):
    answer = server.post("picture", {"foreground": [[30, 20]]}, output="image")
    assert answer.status_code == 200
    (tmp_path / "mask.png").write_bytes(answer.content)
    predict_picture = BundlePredictor(server.bundle.with_name(MODEL))
    expected = predict_picture(studies / "picture.png", foreground=[[30, 20]])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected)


def test_a_series_in_an_archive_gets_the_mask_of_its_files(server, archive, predict, real_data, tmp_path):
    """The archive's series, which MONAI Label converts, against the folder of the same files."""
    folder = next((real_data / "dicom-mr").iterdir())
    files = series_files(folder)
    archive.store(*files)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(files[0]))
    reader.ReadImageInformation()
    prompt = PROMPTS["a click, propagated"]
    with running_server(server.bundle, archive.dicomweb, tmp_path) as beside:
        answer = beside.post(
            reader.GetMetaData("0020|000e").strip("\0 "),
            prompt | {"result_extension": ".nrrd"},
            model=VOLUMES,
            output="image",
        )
    found = saved(answer, tmp_path / "mask.nrrd")
    series = sitk.ImageSeriesReader()
    series.SetFileNames([str(path) for path in files])
    assert_same_place(found, series.Execute())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, predict(folder, **prompt))
