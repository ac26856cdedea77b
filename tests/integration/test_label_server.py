# SPDX-License-Identifier: Apache-2.0
"""The released MONAI Label server, started as a user starts it, against direct calls of the bundle.

Needs the environment of the extra `label`; `nox -s label` builds it.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image

from monai_kdsam.data.phantoms import PHANTOM_KINDS, make_phantom, write_phantoms
from monai_kdsam.inferers import BundlePredictor

if importlib.util.find_spec("monailabel") is None:
    reason = "MONAI Label is not installed; `nox -s label` runs these tests in an environment that has it"
    pytest.skip(reason, allow_module_level=True)

from hosts.label_server import MODEL, LabelServer, label_command, random_bundle, running_server
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

SIZE = 256
# In-plane and out-of-plane spacing, a turn by a third of a right angle, an origin.
OBLIQUE = np.array([[0.52, -0.3, 0, -31.5], [-0.3, -0.52, 0, 20.25], [0, 0, 2.5, 7.0], [0, 0, 0, 1]])
PROMPTS = {
    "no prompt": {},
    "a click": {"foreground": [[60, 50]]},
    "two clicks": {"foreground": [[60, 50]], "background": [[90, 20]]},
    "a box": {"roi": [20, 15, 100, 90]},
    "a box, descending": {"roi": [100, 90, 20, 15]},
    "all together": {"foreground": [[60, 50], [70, 40]], "background": [[90, 20]], "roi": [20, 15, 100, 90]},
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """One picture in every format, and several PNG pictures."""
    folder = write_phantoms(tmp_path_factory.mktemp("data"), per_kind=4, size=150) / "images"
    pixels, _ = make_phantom("breast_lesion", size=150, seed=77)
    grey = np.ascontiguousarray(pixels[..., 0])
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    nibabel.Nifti1Image(grey.T[..., None], OBLIQUE).to_filename(folder / "slice.nii.gz")
    nibabel.Nifti1Image(np.zeros((32, 32, 20), np.uint8), np.eye(4)).to_filename(folder / "volume.nii.gz")
    write_dicom(folder / "frame.dcm", grey)
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "polyp_000.png").read_bytes()[:900])
    return folder


def write_dicom(path: Path, grey: np.ndarray) -> None:
    image = sitk.GetImageFromArray(grey[None])
    image.SetSpacing((0.4, 0.7, 3.0))
    image.SetOrigin((-12.5, 33.25, 8.0))
    image.SetDirection((0, 1, 0, 0, 0, -1, -1, 0, 0))
    for tag, text in {"0008|0060": "MR", "0020|0037": r"0\0\-1\1\0\0", "0020|0032": r"-12.5\33.25\8"}.items():
        image.SetMetaData(tag, text)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running_server(random_bundle(folder, "resnet18", SIZE), studies, folder) as running:
        yield running
        assert running.process.poll() is None, "the server died on the way"


@pytest.fixture(scope="module")
def predict(server) -> BundlePredictor:
    return BundlePredictor(server.bundle)


@pytest.fixture(scope="module")
def client(server) -> MONAILabelClient:
    return MONAILabelClient(server.address)


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content)))


def mask_of(server: LabelServer, image: str, params: dict) -> np.ndarray:
    answer = server.post(image, params, output="image")
    assert answer.status_code == 200, answer.text
    return picture(answer.content)


def test_what_writes_masks_is_loaded_before_the_first_is_asked_for(server):  # the first test of this server
    assert "_ITKIOImageBase" in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_clients_may_click_on_the_model(client):
    model = client.info()["models"][MODEL]
    assert (model["type"], model["dimension"], model["labels"]) == ("deepgrow", 2, {"structure": 1})
    assert model["config"]["model_filename"] == ["model.pt"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("image", ["polyp_000.png", "photo.jpg"])
def test_the_python_clients_mask_is_that_of_a_direct_call(client, predict, studies, image, prompt):
    file, info = client.infer(MODEL, Path(image).stem, dict(PROMPTS[prompt]))  # it adds its own name
    found = np.asarray(Image.open(file))
    np.testing.assert_array_equal(found, predict(studies / image, **PROMPTS[prompt]))
    assert 0.02 < found.mean() < 0.98
    assert info["label_names"] == {"structure": 1}


def test_the_mask_is_that_of_the_network_itself(server, predict, studies):
    data = predict.preprocessing({"image": str(studies / "polyp_000.png"), "foreground": [[60, 50]]})
    points, labels = (data["image"].meta[key][None, :1] for key in ("points", "labels"))
    with torch.no_grad():
        logits = predict.network(data["image"].as_tensor()[None], points, labels)
    upright = predict.postprocessing({"image": data["image"], "pred": data["image"].clone()[:1].copy_(logits[0])})[
        "pred"
    ]
    np.testing.assert_array_equal(mask_of(server, "polyp_000", {"foreground": [[60, 50]]}), np.asarray(upright).T)


def test_prompts_change_the_mask(server):
    masks = [mask_of(server, "polyp_000", PROMPTS[name]).tobytes() for name in PROMPTS]
    assert len(set(masks)) == len(masks) - 1  # the box is there twice


@pytest.mark.parametrize("extension", [None, ".nii.gz", ".nrrd"])
def test_a_nifti_slice_gets_its_geometry_back(server, predict, studies, tmp_path, extension):
    params = {"foreground": [[60, 50, 0]], "result_extension": extension}
    answer = server.post("slice", params, output="image")
    path = tmp_path / f"mask{extension or '.nii.gz'}"
    path.write_bytes(answer.content)
    found, image = sitk.ReadImage(str(path)), sitk.ReadImage(str(studies / "slice.nii.gz"))
    assert_same_place(found, image)
    expected = predict(studies / "slice.nii.gz", foreground=[[60, 50]])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found)[0], expected)


def test_a_dicom_frame_gets_its_geometry_back(server, predict, studies, tmp_path):
    answer = server.post("frame", {"roi": [20, 15, 100, 90]}, output="image")
    (tmp_path / "mask.nrrd").write_bytes(answer.content)
    found, image = sitk.ReadImage(str(tmp_path / "mask.nrrd")), sitk.ReadImage(str(studies / "frame.dcm"))
    assert_same_place(found, image)
    expected = predict(studies / "frame.dcm", roi=[20, 15, 100, 90])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found)[0], expected)


def assert_same_place(found: sitk.Image, image: sitk.Image) -> None:
    assert found.GetSize() == image.GetSize()
    np.testing.assert_allclose(found.GetOrigin(), image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(found.GetSpacing(), image.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(found.GetDirection(), image.GetDirection(), atol=1e-6)


def test_the_request_of_3d_slicer(server, predict, studies, tmp_path):
    """As its module's onClickDeepgrow builds it: IJK points of one slice, the ROI interleaved and descending."""
    params = {
        "label": "structure",
        "foreground": [[60, 50, 0]],
        "background": [[90, 20, 0]],
        "device": "cpu",
        "model_filename": "model.pt",
        "roi": [100, 20, 90, 15, -3, 4],
        "slice": 0,
        "reset_state": True,
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "client_id": "user-xyz",
    }
    for name, suffix in (("slice", ".nii.gz"), ("polyp_000", ".png")):
        answer = server.post(name, params)  # both parts, the mask and its description
        body = answer.content[answer.content.index(b"NRRD") :]
        (tmp_path / "mask.nrrd").write_bytes(body[: body.rindex(b"\r\n--")])
        found, image = (sitk.ReadImage(str(path)) for path in (tmp_path / "mask.nrrd", studies / f"{name}{suffix}"))
        prompt = {"foreground": [[60, 50]], "background": [[90, 20]], "roi": [20, 15, 100, 90]}
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found)[0], predict(studies / f"{name}{suffix}", **prompt))
        assert found.GetPixelID() == sitk.sitkUInt8
        assert found.GetSpacing()[:2] == pytest.approx(image.GetSpacing()[:2])


def test_the_request_of_ohif(server, predict, studies, tmp_path):
    """As MonaiLabelClient.js of its extension sends it."""
    params = {
        "foreground": [[60, 50, 0]],
        "background": [],
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    answer = server.post("frame", params, output="image")
    (tmp_path / "mask.nrrd").write_bytes(answer.content)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nrrd")))[0]
    np.testing.assert_array_equal(found, predict(studies / "frame.dcm", foreground=[[60, 50]]))


@pytest.mark.parametrize("box", [None, [[20, 15], [100, 90]]])
def test_the_cvat_handler_that_ships_with_monai_label(server, predict, studies, tmp_path, monkeypatch, box):
    handler = load_cvat_handler(monkeypatch, server.address)
    context = Namespace(logger=logging.getLogger("cvat"), user_data=Namespace(), Response=lambda **answer: answer)
    handler.init_context(context)
    body = {"image": base64.b64encode((studies / "photo.jpg").read_bytes()), "pos_points": [[60, 50]], "neg_points": []}
    answer = handler.handler(context, Namespace(body=body | {"obj_bbox": box}))
    # The handler sends the picture as a JPEG of its own.
    Image.open(studies / "photo.jpg").save(tmp_path / "sent.jpg")
    roi = None if box is None else [20, 15, 100, 90]
    expected = predict(tmp_path / "sent.jpg", foreground=[[60, 50]], roi=roi)
    np.testing.assert_array_equal(json.loads(answer["body"])["mask"], expected)


def load_cvat_handler(monkeypatch, address):
    monkeypatch.setenv("MONAI_LABEL_SERVER", address)
    monkeypatch.setenv("MONAI_LABEL_MODEL", MODEL)
    path = Path(sys.prefix) / "monailabel" / "plugins" / "cvat" / "interactor.py"
    spec = importlib.util.spec_from_file_location("cvat_interactor", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BAD_PARAMS = {
    "a click beside the image": ({"foreground": [[5000, 3]]}, "within the image of"),
    "a negative click": ({"background": [[-4, 3]]}, "within the image of"),
    "not a number": ({"foreground": [[float("nan"), 3]]}, "finite numbers in `foreground`"),
    "infinity": ({"roi": [0, 0, float("inf"), 9]}, "finite numbers in `roi`"),
    "text": ({"foreground": [["left", "top"]]}, "numbers in `foreground`"),
    "one coordinate": ({"foreground": [[3]]}, r"clicks \[x, y\]"),
    "no list": ({"foreground": 5}, "list of clicks"),
    "a box of no area": ({"roi": [10, 10, 10, 40]}, "box with an area"),
    "half a box": ({"roi": [10, 10, 40]}, r"Expected `roi` to be \[x1"),
    "10,000 clicks": ({"foreground": [[k % 100, k // 100] for k in range(10_000)]}, "at most 64 points"),
    "no JSON": ('{"foreground": [[1,', "Expected `params` to be JSON"),
    "no object": ("[1, 2]", "Expected `params` to be a JSON object"),
    "a number": ("5", "Expected `params` to be a JSON object"),
    "a box beside the image": ({"roi": [5000, 10, 6000, 40]}, "Expected `roi` to cover some of the image"),
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_a_bad_prompt_is_explained_and_the_server_goes_on(server, name):
    params, message = BAD_PARAMS[name]
    answer = server.post("polyp_000", params)
    assert answer.status_code == 400
    assert_explained(answer, message)
    assert mask_of(server, "polyp_000", PROMPTS["a click"]).any()


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        ("nowhere", 404, "There is no image 'nowhere' among the studies"),
        ("volume", 400, "volume"),
        ("empty", 400, "damaged, incomplete"),
        ("cut", 400, "damaged, incomplete"),
    ],
)
def test_an_image_that_cannot_be_read_is_explained(server, image, status, message):
    answer = server.post(image, PROMPTS["a click"])
    assert answer.status_code == status
    assert_explained(answer, message)


@pytest.mark.parametrize(("name", "content"), [("a.png", b""), ("a.nii.gz", b"\x1f\x8b"), ("a.dcm", b"x"), ("a", b"x")])
def test_an_upload_that_is_no_image_is_explained(server, name, content):
    answer = server.post("", {}, file=(name, content))
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"]


def test_a_huge_image_is_explained(server, tmp_path):
    Image.new("1", (40_000, 20_000)).save(tmp_path / "huge.png")
    before = server.memory()
    answer = server.post("", {}, file=("huge.png", (tmp_path / "huge.png").read_bytes()))
    assert answer.status_code == 400
    assert_explained(answer, "exceeds limit|pixels")
    assert server.memory() < before + 300e6


def assert_explained(answer, message: str) -> None:
    detail = answer.json()["detail"]
    assert re.search(message, detail), detail
    assert "Traceback" not in detail
    assert len(detail) < 500


def test_a_mistake_reaches_the_user_of_the_python_client(client):
    with pytest.raises(MONAILabelClientException) as caught:
        client.infer(MODEL, "polyp_000", {"foreground": [[5000, 3]]})
    assert "Expected `foreground` within the image" in caught.value.msg


def test_a_request_that_is_cut_off_disturbs_nobody(server):
    address = urlsplit(server.address)
    for _ in range(3):
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"POST /infer/{MODEL}?image=polyp_000 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
            head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="
            connection.sendall(head.encode())
    assert mask_of(server, "polyp_000", PROMPTS["a click"]).any()


def test_simultaneous_requests_get_their_own_masks(server, predict, studies):
    """Of one image with different prompts, and of different images; each twice."""
    jobs = [("polyp_000", name) for name in PROMPTS]
    jobs += [(f"{kind}_00{k}", name) for kind in PHANTOM_KINDS for k in range(4) for name in ("a click", "a box")]
    expected = {job: predict(studies / f"{job[0]}.png", **PROMPTS[job[1]]) for job in jobs}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: mask_of(server, job[0], PROMPTS[job[1]]), jobs * 2))
    for job, mask in zip(jobs * 2, found, strict=True):
        np.testing.assert_array_equal(mask, expected[job], err_msg=str(job))


def test_memory_does_not_grow_with_requests(server):
    ask = partial(mask_of, server, "breast_lesion_000", PROMPTS["a click"])
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: ask(), range(40)):
            pass
        before = server.memory()
        for _ in pool.map(lambda _: ask(), range(80)):
            pass
    assert server.memory() < before + 20e6


def test_a_second_click_on_an_image_skips_loading_and_encoding(server, studies):
    """Whether the image is a file of the studies or uploaded at each click."""
    loading, network = [], []
    for number in range(3):
        content = (studies / "breast_lesion_001.png").read_bytes() + bytes(
            [number]
        )  # the bytes after the end are ignored
        upload = ("fresh.png", content)
        first, second = (times(server.post("", PROMPTS[name], file=upload)) for name in ("a click", "two clicks"))
        loading.append(second["transform"]["pre"]["RememberedImaged"] / first["transform"]["pre"]["RememberedImaged"])
    assert np.median(loading) < 0.5
    for number in range(3):
        pixels, _ = make_phantom("polyp", size=150, seed=500 + number)
        Image.fromarray(pixels).save(studies / f"fresh_{number}.png")
        upload = ("fresh.png", (studies / f"fresh_{number}.png").read_bytes())
        first, second = (times(server.post("", PROMPTS[name], file=upload)) for name in ("a box", "all together"))
        network.append(second["infer"] / first["infer"])
    assert np.median(network) < 0.5


def times(answer) -> dict:
    start = answer.content.index(b'{"label_names"')
    return json.JSONDecoder().raw_decode(answer.content[start:].decode("latin-1"))[0]["latencies"]


def test_an_image_that_is_replaced_is_segmented_anew(server, predict, studies):
    shutil.copy(studies / "polyp_001.png", studies / "breast_lesion_002.png.new")
    (studies / "breast_lesion_002.png.new").replace(studies / "breast_lesion_002.png")
    expected = predict(studies / "polyp_001.png", **PROMPTS["a click"])
    np.testing.assert_array_equal(mask_of(server, "breast_lesion_002", PROMPTS["a click"]), expected)


@pytest.mark.parametrize(
    "pattern",
    ["Kvasir-SEG/images/*.jpg", "HC18/**/*_HC.png", "Dataset_BUSI_with_GT/*/*).png", "ISIC*/*.jpg"],
)
def test_real_images_get_the_masks_of_a_direct_call(server, predict, real_data, pattern):
    image = min(real_data.glob(pattern), default=None)
    if image is None:
        pytest.skip(f"No {pattern} in KDSAM_DATA")
    prompt = {"foreground": [[150, 120]], "roi": [60, 50, 240, 190]}
    answer = server.post("", prompt, file=(image.name, image.read_bytes()), output="image")
    np.testing.assert_array_equal(picture(answer.content), predict(image, **prompt))


def test_a_port_that_is_taken_is_told_in_one_line(server):
    given = {"--studies": server.studies, "--model": server.bundle, "--port": urlsplit(server.address).port}
    ended = subprocess.run(**label_command(given), capture_output=True, text=True, timeout=120, cwd=server.log.parent)
    assert ended.returncode == 1
    errors = [line for line in ended.stderr.splitlines() if line.startswith("monai_kdsam: error:")]
    assert len(errors) == 1
    assert "Choose another with `--port`" in errors[0]
    assert "Traceback" not in ended.stderr
