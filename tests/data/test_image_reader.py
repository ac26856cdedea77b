# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImage, LoadImaged, Orientationd
from PIL import Image

from monai_kdsam.data import Image2DReader, list_images
from monai_kdsam.data.picture_file import count_frames
from monai_kdsam.rgb import ROWS, pillow_pixels

REAL = os.environ.get("KDSAM_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="set KDSAM_DATA to the folder of the real data sets")
RANDOM = np.random.RandomState(0)


def read(path: Path | str | list, mask: bool = False) -> tuple[np.ndarray, dict]:
    """Array with rows first, (H, W, C), and metadata."""
    reader = Image2DReader(mask=mask)
    array, meta = reader.get_data(reader.read(path))
    return np.asarray(array).swapaxes(0, 1), meta


def saved(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def write_dicom(path: Path, pixels: np.ndarray, **tags: object) -> Path:
    """Write (H, W) or, with NumberOfFrames, (N, H, W) pixels, uncompressed."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom writes the DICOM files of this test")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = pixels.dtype.itemsize * 8
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OW" if bits == 16 else "OB"
    if int(pydicom.__version__.split(".")[0]) < 3:
        data.is_little_endian, data.is_implicit_VR = True, False
        data.save_as(path, write_like_original=False)
    else:
        data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_rgb_comes_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    rgb = RANDOM.randint(0, 256, (7, 9, 3), dtype=np.uint8)
    array, meta = read(saved(tmp_path / f"a.{suffix}", rgb))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, rgb)
    assert meta["spatial_shape"].tolist() == [9, 7]


def test_jpeg_equals_pillow_and_ignores_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RANDOM.randint(0, 256, (7, 9, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.jpg")[0], np.asarray(Image.open(tmp_path / "a.jpg")))


def test_gray_is_repeated_and_one_bit_becomes_0_and_255(tmp_path: Path) -> None:
    gray = np.array([[0, 200], [90, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(read(saved(tmp_path / "g.png", gray))[0], np.stack([gray] * 3, axis=-1))
    assert set(np.unique(read(saved(tmp_path / "b.png", gray, "1"))[0])) <= {0, 255}


def test_alpha_is_composited_over_black_and_in_masks_says_what_the_colours_say(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], dtype=np.uint8))
    assert read(path)[0].tolist() == [[[200, 100, 50], [0, 0, 0]]]
    with pytest.raises(ValueError, match=r"a\.png is no mask: Its alpha and its colours are two different masks"):
        read(path, mask=True)
    opaque = saved(tmp_path / "b.png", np.array([[[200, 200, 200, 255], [0, 0, 0, 255]]], dtype=np.uint8))
    assert read(opaque, mask=True)[0].tolist() == [[[200], [0]]]
    luminance = saved(tmp_path / "la.png", np.array([[[200, 255], [100, 51]]], dtype=np.uint8))
    assert read(luminance)[0][0, :, 0].tolist() == [200, 20]


def test_palette_is_expanded_in_images_and_kept_in_masks_unless_gray(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putdata([0, 1, 2])
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "color.png")
    assert read(tmp_path / "color.png")[0].tolist() == [[[0, 0, 0], [255, 0, 0], [0, 0, 255]]]
    assert read(tmp_path / "color.png", mask=True)[0].ravel().tolist() == [0, 1, 2]
    image.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "gray.png")
    assert read(tmp_path / "gray.png", mask=True)[0].ravel().tolist() == [255, 0, 9]


def test_cmyk_is_converted_as_pillow_does(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", RANDOM.randint(0, 256, (4, 5, 3), dtype=np.uint8), "CMYK")
    np.testing.assert_array_equal(read(path)[0], np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_mapped_from_its_percentiles(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(1000, 3000, 10000).reshape(100, 100).astype(np.uint16)
    low, high = np.percentile(ramp, [0.5, 99.5])
    expected = ((ramp - low) / (high - low) * 255).clip(0, 255)
    array = read(saved(tmp_path / f"a.{suffix}", ramp))[0]
    assert (array.min(), array.max()) == (0, 255)
    assert np.abs(array[..., 1] - expected).max() <= 0.5


MODES = ["L", "LA", "RGB", "RGBA", "I", "F", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_many_strips_has_pillows_own_values(mode):
    gray = Image.fromarray(RANDOM.randint(0, 256, (2 * ROWS + 3, 5), dtype=np.uint8))
    picture = gray.convert("I").convert(mode) if mode == "I;16" else gray.convert(mode)
    assert np.array_equal(pillow_pixels(picture), np.asarray(picture))


def test_loading_leaves_a_pictures_rows_as_they_were_decoded(tmp_path):
    path = saved(tmp_path / "a.png", RANDOM.randint(0, 256, (4, 5, 3), dtype=np.uint8))
    image = LoadImaged("image", reader=Image2DReader, dtype=None)({"image": str(path)})["image"]
    assert image.shape == (5, 4, 3)
    assert image.swapaxes(0, 1).is_contiguous()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_rgb_keeps_its_low_byte(tmp_path: Path, suffix: str) -> None:
    ramp = np.arange(3 * 400, dtype=np.uint16).reshape(20, 20, 3)  # all of it in 1200 of 65536 levels
    sitk.WriteImage(sitk.GetImageFromArray(ramp, isVector=True), str(tmp_path / f"a.{suffix}"))
    array = read(tmp_path / f"a.{suffix}")[0]
    assert len(np.unique(array)) == 256
    assert (np.diff(array.reshape(-1).astype(int)) >= 0).all()


def test_float_tiff_with_nan_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "nan.tif", np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(ValueError, match=r"nan\.tif contains NaN"):
        read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "nii.gz", "nii"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path, pixels = tmp_path / f"cut.{suffix}", RANDOM.randint(0, 256, (60, 50), dtype=np.uint8)
    if suffix.startswith("nii"):
        nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), path)
    else:
        saved(path, pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    with pytest.raises(ValueError, match=r"Cannot read .*cut\."):
        read(path)


def test_a_text_file_and_a_missing_file_are_errors_that_name_them(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"Cannot read .*text\.png"):
        read(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read(tmp_path / "gone.png")


def test_load_image_does_not_fall_back_to_another_reader(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6)), np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(ValueError, match="a volume of shape"):
        LoadImage(reader="monai_kdsam.data.Image2DReader")(tmp_path / "volume.nii")


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1)])
def test_nifti_keeps_its_axes_values_and_in_plane_affine(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = RANDOM.randint(0, 256, shape, dtype=np.uint8)
    affine = np.diag([-0.5, 0.25, 3.0, 1.0])
    affine[:2, 3] = 10, 20
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    loaded = LoadImage(reader=Image2DReader(mask=True))(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(loaded.numpy()[..., 0], values.reshape(6, 4))
    assert loaded.affine.tolist() == [[-0.5, 0, 10], [0, 0.25, 20], [0, 0, 1]]


def test_nifti_out_of_the_axial_plane_keeps_its_spacing(tmp_path: Path) -> None:
    sagittal = np.array([[0, 0, 1, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 4, 1), dtype=np.uint8), sagittal), tmp_path / "a.nii")
    assert read(tmp_path / "a.nii")[1]["affine"].tolist() == [[-2, 0, 0], [0, -3, 0], [0, 0, 1]]


def test_nifti_rgb_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rgb = RANDOM.randint(0, 256, (6, 4, 3), dtype=np.uint8)
    packed = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")]).reshape(6, 4)
    nibabel.save(nibabel.Nifti1Image(packed, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read(tmp_path / "a.nii")[0].swapaxes(0, 1), rgb)


def test_dicom_window_is_that_of_the_standard(tmp_path: Path) -> None:
    values = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50)
    tags = {
        "WindowCenter": 40,
        "WindowWidth": 400,
        "RescaleSlope": 2,
        "RescaleIntercept": -24,
        "PixelSpacing": [0.5, 0.25],
    }
    array, meta = read(write_dicom(tmp_path / "ct.dcm", values, **tags))
    # DICOM PS3.3 C.11.2.1.2.1, linear
    expected = (((values * 2.0 - 24) - (40 - 0.5)) / (400 - 1) + 0.5).clip(0, 1) * 255
    assert np.abs(array[..., 0] - expected).max() <= 0.5
    assert meta["affine"].tolist() == [[-0.25, 0, 0], [0, -0.5, 0], [0, 0, 1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_monochrome1_is_the_negative_of_monochrome2_and_its_mask_is_raw(tmp_path: Path, dtype: type) -> None:
    values = np.arange(100, dtype=dtype).reshape(10, 10)
    window = (
        {} if dtype == np.uint8 else {"WindowCenter": 40, "WindowWidth": 60, "RescaleIntercept": 5, "RescaleSlope": 1}
    )
    dark = read(write_dicom(tmp_path / "2.dcm", values, **window))[0]
    path = write_dicom(tmp_path / "1.dcm", values, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_array_equal(read(path)[0], 255 - dark)
    np.testing.assert_array_equal(read(path, mask=True)[0][..., 0], values + window.get("RescaleIntercept", 0))


@pytest.mark.parametrize(
    "turn", [(0, 0, -1, 1, 0, 0, 0, -1, 0), (1, 0, 0, 0, 0, 1, 0, -1, 0)], ids=["sagittal", "coronal"]
)
def test_a_dicom_frame_may_lie_in_any_plane(tmp_path: Path, turn: tuple) -> None:
    pixels = RANDOM.randint(0, 255, (1, 9, 12)).astype(np.uint8)
    image = sitk.GetImageFromArray(pixels)
    image.SetDirection(turn)
    axes = np.reshape(turn, (3, 3)).T[:2].ravel()
    image.SetMetaData("0020|0037", "\\".join(str(number) for number in axes))
    sitk.WriteImage(image, str(tmp_path / "a.dcm"))
    assert sitk.ReadImage(str(tmp_path / "a.dcm")).GetDirection() == pytest.approx(turn)
    np.testing.assert_array_equal(read(tmp_path / "a.dcm", mask=True)[0][..., 0], pixels[0])


def test_a_frame_is_named_in_the_stem_and_a_bare_cine_is_an_error(tmp_path: Path) -> None:
    cine = RANDOM.randint(0, 256, (3, 8, 6), dtype=np.uint8)
    path = write_dicom(tmp_path / "cine.dcm", cine, NumberOfFrames=3)
    (tmp_path / "IM0001").write_bytes(path.read_bytes())
    for name in ("cine#frame2.dcm", "IM0001#frame2"):
        np.testing.assert_array_equal(read(tmp_path / name)[0][..., 0], cine[2])
    with pytest.raises(ValueError, match=r"3 frames. Name one in the path, from cine#frame0\.dcm to #frame2"):
        read(path)
    with pytest.raises(ValueError, match="frame 3 was asked for"):
        read(tmp_path / "cine#frame3.dcm")


def test_a_folder_is_listed_with_frames_and_without_strangers(tmp_path: Path) -> None:
    write_dicom(tmp_path / "cine.dcm", np.zeros((2, 8, 6), dtype=np.uint8), NumberOfFrames=2)
    (tmp_path / "IM0001").write_bytes((tmp_path / "cine.dcm").read_bytes())
    (tmp_path / "deep").mkdir()
    saved(tmp_path / "deep" / "b (1).PNG", np.zeros((2, 2), dtype=np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._b.png").write_text("left behind by a file system")
    listed = [Path(item["image"]).relative_to(tmp_path).as_posix() for item in list_images(tmp_path)]
    assert listed == ["IM0001#frame0", "IM0001#frame1", "cine#frame0.dcm", "cine#frame1.dcm", "deep/b (1).PNG"]


def test_an_empty_folder_and_no_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No image in"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="Expected a folder"):
        list_images(tmp_path / "none")


def test_several_masks_are_channels_of_one_size(tmp_path: Path) -> None:
    one, two = np.eye(4, dtype=np.uint8) * 255, np.zeros((4, 4), dtype=np.uint8)
    paths = [saved(tmp_path / "1.png", one), saved(tmp_path / "2.png", two)]
    np.testing.assert_array_equal(read(paths, mask=True)[0], np.stack([one, two], axis=-1))
    with pytest.raises(ValueError, match="one file per image"):
        read(paths)
    with pytest.raises(ValueError, match="one size"):
        read([*paths, saved(tmp_path / "3.png", one[:2])], mask=True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_orientation_pl_gives_rows_from_the_top_and_inverts(tmp_path: Path) -> None:
    rgb = RANDOM.randint(0, 256, (7, 9, 3), dtype=np.uint8)
    transforms = Compose(
        [
            LoadImaged("image", reader="monai_kdsam.data.Image2DReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="PL"),
        ]
    )
    item = transforms({"image": str(saved(tmp_path / "a.png", rgb))})
    np.testing.assert_array_equal(item["image"].numpy(), rgb.transpose(2, 0, 1))
    inverted = Invertd("image", transforms)(item)["image"]
    np.testing.assert_array_equal(inverted.numpy(), rgb.transpose(2, 1, 0))
    assert inverted.affine.tolist() == [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]


@needs_real_data
@pytest.mark.parametrize("path", sorted(Path(REAL or ".").glob("dicom-us/*.dcm")), ids=lambda path: path.name)
def test_real_ultrasound_dicom_equals_pydicom(path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", minversion="3", reason="pydicom 3 is the oracle of this test")
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg decodes JPEG 2000 for the oracle")
    frames, data = count_frames(path), pydicom.dcmread(path)
    frame = path if frames == 1 else path.with_name(f"{path.stem}#frame{frames - 1}.dcm")
    expected = pydicom.pixels.pixel_array(data, index=frames - 1)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        expected = pydicom.pixels.apply_color_lut(expected, data)
        expected = expected >> 8 if expected.dtype == np.uint16 else expected
    # Two JPEG decoders may differ by a few levels (color conversion and chroma upsampling).
    allowed = 3 if "YBR_FULL" in data.PhotometricInterpretation else 0
    array, meta = read(frame)
    assert np.abs(array.astype(int) - expected).max() <= allowed
    regions = data.get("SequenceOfUltrasoundRegions")
    assert meta["affine"][0, 0] == pytest.approx(-10 * regions[0].PhysicalDeltaX if regions else -1)


@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -10}])
@pytest.mark.parametrize("bits", [12, 16])
def test_signed_monochrome1_is_read_as_it_is_stored_and_shown_inverted(tmp_path, rescale, bits):
    pixels = RANDOM.randint(-2048, 2048, (8, 9)).astype(np.int16)
    tags = rescale | {"BitsStored": bits, "HighBit": bits - 1}
    plain, inverted = (
        write_dicom(tmp_path / f"{kind}.dcm", pixels, PhotometricInterpretation=kind, **tags)
        for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    expected = pixels * rescale.get("RescaleSlope", 1) + rescale.get("RescaleIntercept", 0)
    np.testing.assert_array_equal(read(inverted, mask=True)[0][..., 0], expected)
    np.testing.assert_array_equal(read(inverted)[0], 255 - read(plain)[0])


def test_padding_does_not_count_in_the_percentiles(tmp_path):
    """A scanner's circle: what lies outside is -2000, a range of it with the limit."""
    pixels = np.full((40, 40), -2000, np.int16)
    pixels[0] = -1990
    pixels[10:30, 10:30] = np.arange(400).reshape(20, 20)
    low, high = np.percentile(np.arange(400), [0.5, 99.5])
    tags = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}
    image = read(write_dicom(tmp_path / "a.dcm", pixels, **tags))[0][..., 0]
    expected = ((np.arange(400) - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(image[10:30, 10:30].ravel() - expected).max() <= 0.5
    assert not image[:10].any()


def test_a_cine_is_decoded_once(tmp_path, monkeypatch):
    from monai_kdsam.dicom import decoding

    frames = RANDOM.randint(0, 256, (5, 6, 7), dtype=np.uint8)
    path = write_dicom(tmp_path / "cine.dcm", frames, NumberOfFrames=5)
    decoded, decode_frames = [], decoding._decode_frames
    monkeypatch.setattr(decoding, "_decode_frames", lambda *given: decoded.append(given) or decode_frames(*given))
    for number, frame in enumerate(frames):
        image, _ = read(tmp_path / f"cine#frame{number}.dcm")
        np.testing.assert_array_equal(image[..., 0], frame)
        image[:] = 0  # must not reach what is remembered
    np.testing.assert_array_equal(read(tmp_path / "cine#frame2.dcm")[0][..., 0], frames[2])
    assert len(decoded) == 1
    write_dicom(path, 255 - frames, NumberOfFrames=5)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(read(tmp_path / "cine#frame2.dcm")[0][..., 0], 255 - frames[2])
