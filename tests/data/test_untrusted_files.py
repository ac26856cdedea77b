# SPDX-License-Identifier: Apache-2.0
"""Files that are not what they claim to be: each is refused in a sentence, and none is answered from memory."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from pydicom.encaps import encapsulate

from monai_kdsam.bundles import bundle_path
from monai_kdsam.data import VolumeReader, list_images
from monai_kdsam.data.checks import inspect_items
from monai_kdsam.data.picture_file import decode
from monai_kdsam.rgb import TooLargeError, read_picture

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (48, 48), dtype=np.uint8)


def png_header(path: Path, width: int, height: int, depth: int, color: int) -> Path:
    """A PNG file that ends after its claims."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)), (b"IDAT", b"x")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(chunks)
    return path


def nifti_header(path: Path, *shape: int) -> Path:
    """The header of a float64 NIfTI file, compressed, without its pixels."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", header, 70, 64, 64)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(header))
    return path


def dicom(path: Path, data: bytes, side: int = 48, frames: int = 1, syntax: str = "1.2.840.10008.1.2.1") -> Path:
    """An 8-bit gray DICOM file with any pixel data, however much its header claims."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = side, side, frames
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = data
    dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, dataset, **WRITE)
    return path


WRITE = {"enforce_file_format": True} if pydicom.__version__ >= "3" else {"write_like_original": False}


def encoded(form: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, form, **options)
    return stream.getvalue()


BOMBS = {
    "rgba.png": lambda path: png_header(path, 13300, 13300, 8, 6),
    "48bit.png": lambda path: png_header(path, 10000, 10000, 16, 2),
    "huge.png": lambda path: png_header(path, 60000, 60000, 8, 2),
    "claim.nii.gz": lambda path: nifti_header(path, 32767, 32767),
    "claim.dcm": lambda path: dicom(path, b"\0\0", side=20000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_claims_too_many_pixels_is_refused_by_its_header(tmp_path, name):
    path = BOMBS[name](tmp_path / name)
    with pytest.raises(TooLargeError, match=f"{name} .*KDSAM_MAX_PIXELS"):
        decode(path)
    assert "KDSAM_MAX_PIXELS" in inspect_items([{"image": str(path)}]).problems[0].message
    if path.suffix == ".png" and name != "48bit.png":
        with pytest.raises(ValueError, match="KDSAM_MAX_PIXELS"):
            read_picture(path)


def test_a_deflated_file_is_not_inflated_beyond_the_limit(tmp_path, monkeypatch):
    path = dicom(tmp_path / "bomb.dcm", PIXELS.tobytes() + bytes(2**23), syntax=NATIVE[2])
    assert decode(path).pixels.shape == (48, 48)
    assert path.stat().st_size < 20_000
    monkeypatch.setenv("KDSAM_MAX_PIXELS", str(2**22))
    with pytest.raises(TooLargeError, match="bomb"):
        decode(path)


def test_a_volume_that_claims_too_many_voxels_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"claims 1000 x 1000 x 1000 pixels of 8 bytes, more than the 1073741824"):
        VolumeReader().get_data(str(nifti_header(tmp_path / "v.nii.gz", 1000, 1000, 1000)))


def test_the_limit_can_be_set_and_counts_frames_together(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    cine = dicom(tmp_path / "cine.dcm", PIXELS.tobytes() * 8, frames=8)
    monkeypatch.setenv("KDSAM_MAX_PIXELS", str(48 * 48))
    assert decode(tmp_path / "a.png").pixels.shape == (48, 48)
    assert len(list_images(tmp_path)) == 9
    monkeypatch.setenv("KDSAM_MAX_PIXELS", str(48 * 48 // 4))
    with pytest.raises(TooLargeError, match="claims 48 x 48 pixels of 4 bytes, more than the 576"):
        decode(tmp_path / "a.png")
    with pytest.raises(TooLargeError, match="claims 48 x 48"):
        decode(str(cine).replace("cine", "cine#frame2"))
    monkeypatch.setenv("KDSAM_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="Expected KDSAM_MAX_PIXELS in the environment to be a number"):
        decode(tmp_path / "a.png")


NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
JPEG, RLE, J2K = encoded("JPEG"), "1.2.840.10008.1.2.5", encoded("JPEG2000", no_jp2=True)
PACKED = struct.pack("<16I", 1, 64, *[0] * 14) + b"".join(b"\x2f" + bytes(row) for row in PIXELS)
COMPRESSED = {"1.2.840.10008.1.2.4.50": JPEG, "1.2.840.10008.1.2.4.90": J2K, RLE: PACKED}


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(("length", "frames"), [(300, 1), (48 * 48 - 2, 1), (48 * 48, 3)])
def test_dicom_with_fewer_pixels_than_it_claims_is_refused(tmp_path, syntax, length, frames):
    path = dicom(tmp_path / "short.dcm", PIXELS.tobytes()[:length], frames=frames, syntax=syntax)
    for name in ("short.dcm", "short#frame2.dcm"):
        with pytest.raises(ValueError, match=f"it has {length} of the {48 * 48 * frames} bytes of pixels"):
            decode(path.with_name(name))
    with pytest.raises(ValueError, match="bytes of pixels"):
        VolumeReader().get_data(str(path))


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_dicom_with_too_little_is_refused(tmp_path, syntax):
    whole = COMPRESSED[syntax]
    assert decode(dicom(tmp_path / "whole.dcm", encapsulate([whole]), syntax=syntax)).pixels.shape == (48, 48)
    short = whole[: len(whole) // 4 * 2]
    for frames, parts in ((1, [short]), (3, [whole]), (3, [whole, short, whole])):
        path = dicom(tmp_path / "short.dcm", encapsulate(parts), frames=frames, syntax=syntax)
        with pytest.raises(ValueError, match=r"Cannot read .*short"):
            decode(path if frames == 1 else tmp_path / "short#frame1.dcm")


@pytest.mark.parametrize("side", [24, 96])
@pytest.mark.parametrize("frames", [1, 2])
def test_compressed_dicom_whose_pictures_are_of_another_size_is_refused(tmp_path, side, frames):
    path = dicom(tmp_path / "other.dcm", encapsulate([JPEG] * frames), side, frames, "1.2.840.10008.1.2.4.50")
    with pytest.raises(ValueError, match=f"has 48 x 48 pixels, but its header claims {side} x {side}"):
        decode(path)


def test_a_cut_tiff_of_several_pages_is_named_and_its_folder_is_listed(tmp_path):
    page = Image.fromarray(PIXELS)
    page.save(tmp_path / "whole.tif", save_all=True, append_images=[page, page])
    content = (tmp_path / "whole.tif").read_bytes()
    for cut in range(8, len(content), len(content) // 16):
        (tmp_path / "cut.tif").write_bytes(content[:cut])
        assert len(list_images(tmp_path)) >= 4
        for read in (decode, read_picture):
            with pytest.raises(ValueError, match=r"cut\.tif"):
                read(tmp_path / "cut.tif")


@pytest.mark.parametrize("form", ["EPS", "GIF", "WEBP", "PPM", "ICO"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_of_other_formats_are_refused_whatever_their_name(tmp_path, form, suffix):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(encoded(form))
    for read in (decode, read_picture):
        with pytest.raises(ValueError, match=re.escape(path.name)):
            read(path)


def test_a_documented_format_may_have_the_suffix_of_another(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("BMP"))
    assert np.array_equal(decode(tmp_path / "a.png").pixels, PIXELS)


def test_a_large_picture_is_prepared_in_little_memory(tmp_path):
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is measured by Linux's own count")
    Image.new("RGB", (4000, 3000), (200, 100, 50)).save(tmp_path / "a.jpg")
    parser = ConfigParser()
    parser.read_config(str(bundle_path() / "configs" / "inference.json"))
    parser.update({"image_size": 64})
    prepare = parser.get_parsed_content("preprocessing")

    def memory(name: str) -> float:
        return int(re.findall(rf"{name}:\s+(\d+) kB", status.read_text())[0]) / 1024

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    prepare({"image": str(tmp_path / "a.jpg")})
    assert memory("VmHWM") - before < 200  # MiB; it was 2500 when 12 megapixels became float32 at once


def test_a_header_element_longer_than_the_memory_is_refused(tmp_path, monkeypatch):
    def read(*_: object, **__: object) -> None:
        raise MemoryError  # as `read` does for an element that claims 4 GB

    path = dicom(tmp_path / "a.dcm", PIXELS.tobytes())
    monkeypatch.setattr("monai_kdsam.dicom.decoding.read_partial", read)
    for reader in (decode, VolumeReader().get_data):
        with pytest.raises(ValueError, match=r"Cannot read .*a\.dcm: .*MemoryError"):
            reader(str(path))
