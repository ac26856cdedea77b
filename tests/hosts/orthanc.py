# SPDX-License-Identifier: Apache-2.0
"""Orthanc as a process, and generated studies to store in it, for the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import requests
from hosts.label_server import free_port
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, UltrasoundImageStorage, generate_uid

from monai_kdsam.data.phantoms import make_phantom

SPACING = (0.5, 0.7)  # between rows, between columns, mm


@dataclass(frozen=True)
class Archive:
    """An Orthanc that runs."""

    address: str
    process: subprocess.Popen[bytes]

    @property
    def dicomweb(self) -> str:
        return f"{self.address}/dicom-web"

    def store(self, *datasets: Dataset | Path) -> None:
        for dataset in datasets:
            body = dataset.read_bytes() if isinstance(dataset, Path) else encoded(dataset)
            requests.post(f"{self.address}/instances", data=body, timeout=60).raise_for_status()

    def find(self, level: str, **filters: str) -> list[Dataset]:
        """QIDO-RS."""
        answer = requests.get(f"{self.dicomweb}/{level}", params=filters, timeout=60)
        answer.raise_for_status()
        return [Dataset.from_json(item) for item in answer.json()] if answer.content else []

    def read(self, series: str) -> pydicom.Dataset:
        """The only instance of a series."""
        (found,) = requests.post(
            f"{self.address}/tools/find",
            data=json.dumps({"Level": "Instance", "Query": {"SeriesInstanceUID": series}}),
            timeout=60,
        ).json()
        content = requests.get(f"{self.address}/instances/{found}/file", timeout=60).content
        return pydicom.dcmread(BytesIO(content))


def debian_root() -> Path:
    """Where Debian packages were unpacked to: what KDSAM_DEBIAN names, or the system itself."""
    return Path(os.environ.get("KDSAM_DEBIAN", "/"))


def find_program(*paths: str) -> Path:
    """A program of a Debian package, by the places where the package puts it."""
    candidates = [debian_root() / path for path in paths]
    found = next((path for path in candidates if path.is_file()), None) or shutil.which(Path(paths[0]).name)
    if found is None:
        raise FileNotFoundError(f"There is no {paths[0]}; `nox -s label` fetches it where there is apt-get.")
    return Path(found)


def library_path() -> dict[str, str]:
    """For programs that were unpacked and not installed."""
    root = debian_root()
    if root == Path("/"):
        return {}
    places = [root / part for part in ("usr/lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu")]
    places += [root / part for part in ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu")]
    # libpulse, which Chromium wants, looks for its own part in this folder of the installed system.
    folders = places + [place / "pulseaudio" for place in places]
    return {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Archive]:
    program = find_program("usr/sbin/Orthanc")
    plugins = sorted(debian_root().glob("usr/share/orthanc/plugins/libOrthancDicomWeb*"))
    plugins += sorted(debian_root().glob("usr/lib/orthanc/libOrthancDicomWeb*"))
    if not plugins:
        raise FileNotFoundError("Orthanc is there without its DICOMweb plugin: install orthanc-dicomweb.")
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "archive"),
        "IndexDirectory": str(folder / "archive"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(plugins[-1])],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    dictionary = [file for root in (debian_root(), Path("/")) for file in root.glob("usr/share/libdcmtk*/dicom.dic")]
    environment = os.environ | library_path() | {"DCMDICTPATH": str(dictionary[0])}
    with (folder / "orthanc.log").open("wb") as log:
        command = [str(program), str(folder / "orthanc.json")]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    archive = Archive(f"http://127.0.0.1:{port}", process)
    try:
        _wait(archive, folder / "orthanc.log")
        yield archive
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(archive: Archive, log: Path) -> None:
    for _ in range(150):
        try:
            if requests.get(f"{archive.dicomweb}/studies", timeout=10).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
        if archive.process.poll() is not None:
            break
    raise RuntimeError(f"Orthanc did not start:\n{log.read_text()[-3000:]}")


def encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, write_like_original=False)
    return buffer.getvalue()


def ultrasound_still(seed: int = 3, size: int = 150) -> FileDataset:
    """A picture in colour that lies nowhere in space, as ultrasound has it."""
    pixels, _ = make_phantom("breast_lesion", size=size, seed=seed)
    dataset = _instance(pixels, UltrasoundImageStorage, "US", generate_uid(), generate_uid())
    dataset.PlanarConfiguration = 0
    return dataset


def mr_series(
    slices: int = 9, seed: int = 5, orientation: Sequence[float] = (0.8, 0.6, 0, 0, 0, -1)
) -> list[FileDataset]:
    """An MR volume in 16 bits with a window; its structure moves from slice to slice."""
    pixels, _ = make_phantom("breast_lesion", size=150, seed=seed)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    instances = []
    for index in range(slices):
        grey = np.roll(pixels[..., 0], 3 * index, axis=0).astype(np.uint16) * 4 + 100
        dataset = _instance(grey, MRImageStorage, "MR", study, series)
        dataset.InstanceNumber = slices - index  # the numbers run against the positions
        dataset.FrameOfReferenceUID = frame
        dataset.PositionReferenceIndicator = ""
        dataset.PixelSpacing = list(SPACING)
        dataset.SliceThickness = 2.0
        dataset.ImageOrientationPatient = list(orientation)
        normal = np.cross(orientation[:3], orientation[3:])
        dataset.ImagePositionPatient = [round(float(v), 6) for v in np.array([-20.0, 15.0, 40.0]) + 2 * index * normal]
        dataset.WindowCenter, dataset.WindowWidth = 600, 900
        instances.append(dataset)
    return instances


def _instance(pixels: np.ndarray, kind: str, modality: str, study: str, series: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "Phantom^Generated", "PHANTOM"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = study, series, modality
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20261122", "120000", "1"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "", ""
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.SeriesDescription = 1, 1, "generated phantom"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    bits = 8 * pixels.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    return dataset
