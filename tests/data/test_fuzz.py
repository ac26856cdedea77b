# SPDX-License-Identifier: Apache-2.0
"""Damaged files through the readers, in a child of bounded memory: our own errors, or one answer whenever asked."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

CASES = 150
SEED = 0
ROOM = 1500 * 2**20  # bytes of memory beside what the libraries take


@pytest.mark.slow
def test_damaged_files_end_in_our_errors_or_in_one_answer(tmp_path):
    command = [sys.executable, __file__, str(tmp_path), str(SEED), str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def whole_files() -> dict[str, bytes]:
    """One small file of each kind that is read."""
    from PIL import Image
    from pydicom.encaps import encapsulate
    from test_untrusted_files import COMPRESSED, NATIVE, PIXELS, dicom

    def picture(array: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
        stream = io.BytesIO()
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(stream, form, **options)
        return stream.getvalue()

    def dicom_file(data: bytes, syntax: str, frames: int = 1) -> bytes:
        return dicom(Path("whole.dcm"), data, frames=frames, syntax=syntax).read_bytes()

    rgb = np.stack([PIXELS, PIXELS.T, 255 - PIXELS], axis=-1)
    pages = [Image.fromarray(PIXELS), Image.fromarray(PIXELS.T.copy())]
    files = {
        "rgb.png": picture(rgb, "PNG"),
        "palette.png": picture(rgb, "PNG", "P"),
        "gray16.png": picture(PIXELS.astype(np.uint16) * 257, "PNG"),
        "rgb.jpg": picture(rgb, "JPEG"),
        "cmyk.jpg": picture(rgb, "JPEG", "CMYK"),
        "rgb.bmp": picture(rgb, "BMP"),
        "palette.bmp": picture(rgb, "BMP", "P"),
        "pages.tif": picture(PIXELS, "TIFF", save_all=True, append_images=pages),
        "lzw.tif": picture(rgb, "TIFF", compression="tiff_lzw"),
        "float.tif": picture(PIXELS.astype(np.float32), "TIFF"),
        "fax.tif": picture(PIXELS, "TIFF", "1", compression="group4"),
    }
    for syntax in NATIVE:
        files[f"{syntax}.dcm"] = dicom_file(PIXELS.tobytes(), syntax)
        files[f"cine{syntax}.dcm"] = dicom_file(PIXELS.tobytes() * 3, syntax, 3)
    for syntax, frame in COMPRESSED.items():
        files[f"{syntax}.dcm"] = dicom_file(encapsulate([frame]), syntax)
        files[f"cine{syntax}.dcm"] = dicom_file(encapsulate([frame] * 3), syntax, 3)
    return files | nifti_files(PIXELS)


def nifti_files(pixels: np.ndarray) -> dict[str, bytes]:
    import nibabel

    files = {}
    for name, array in (("plane", pixels[..., None]), ("stack", np.stack([pixels] * 3, axis=-1))):
        for kind, suffix in ((nibabel.Nifti1Image, "nii"), (nibabel.Nifti2Image, "nii.gz")):
            files[f"{name}.{suffix}"] = kind(array.astype(np.int16), np.diag([0.5, 0.5, 2, 1])).to_bytes()
    return files


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, a part cut out or doubled, or the end cut off; headers more often than pixels."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if len(data) < 32:
            break
        end = draw.choice((len(data), min(len(data), 700), min(len(data), 100)))
        place = draw.randrange(end)
        kind = draw.random()
        if kind < 0.7:
            data[place] = draw.choice(
                (0, 1, 127, 128, 255, data[place] ^ (1 << draw.randrange(8)), draw.randrange(256))
            )
        elif kind < 0.8:
            del data[place : place + draw.choice((1, 2, 8, 64))]
        elif kind < 0.9:
            data[place:place] = data[place : place + draw.choice((1, 2, 8, 64))]
        else:
            del data[max(place, 16) :]
    return bytes(data)


def readers(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    """All ways in which the file may be read."""
    from monai_kdsam.data import Image2DReader, VolumeReader, list_images, list_volumes
    from monai_kdsam.rgb import read_picture

    yield lambda: np.array(sorted(item["image"] for item in list_images(path.parent)))
    yield lambda: np.array(sorted(item["image"] for item in list_volumes(path.parent)))
    frames = (path, path.with_name(f"{path.stem}#frame1{path.suffix}"))
    for name in frames if path.suffix in (".dcm", ".tif") else frames[:1]:
        yield lambda name=name: np.asarray(Image2DReader().get_data(name)[0])
        yield lambda name=name: Image2DReader(mask=True).get_data(name)[0]
    yield lambda: read_picture(path)
    yield lambda: VolumeReader().get_data(path)[0]


def answer(read: Callable[[], np.ndarray], fill: int) -> np.ndarray:
    """What a reader says, the memory that it gets being full of `fill`."""
    for size in (2**11, 2**12, 2**13, 2**14):
        rubbish = [np.full(size, fill, np.uint8) for _ in range(64)]
        del rubbish
    from monai_kdsam.errors import UserError

    try:
        return read()
    except UserError as error:
        return np.array(type(error).__name__)


def fuzz(folder: Path, seed: int, cases: int) -> None:
    import resource

    os.chdir(folder)
    warnings.simplefilter("ignore")
    files, complaints = whole_files(), []
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    for case in range(cases):
        draw = random.Random(f"{seed}/{case}")
        name = draw.choice(sorted(files))
        content = damaged(files[name], draw)
        path = folder / "case" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        for number, read in enumerate(readers(path)):
            found = complaint(read)
            if found:
                complaints.append(f"case {case}, {name}, reader {number}: {found}")
                print(complaints[-1], flush=True)
        path.unlink()
    if complaints:
        raise SystemExit("\n".join(complaints))


def complaint(read: Callable[[], np.ndarray]) -> str:
    try:
        first, second = (answer(read, fill) for fill in (7, 99))
    except Exception as error:  # any but ours is what is looked for
        return repr(error)
    return "" if np.array_equal(first, second, equal_nan=first.dtype.kind == "f") else "two answers"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
