# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's store of a folder of studies: a label that was accepted stays, and no name leads out of it."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from pydantic_core import to_json

from monai_kdsam.data.paths import SUFFIXES, is_dicom, is_supported, stem_of, suffix_of
from monai_kdsam.errors import UserError
from monai_kdsam.files import is_unicode, replacing

__all__ = ["StudiesDatastore", "checked_name"]

logger = logging.getLogger(__name__)
LABEL_SUFFIXES = (*SUFFIXES, ".nrrd")
REMEDY = "Free some space, or make the folder writable; what was stored before is as it was."


def checked_name(name: str, what: str) -> str:
    """A name that may become a file's, and nothing but a file of the folder that it is meant for.

    Raises:
        ValueError: when it is empty, hidden, too long, or has a separator or a control character.
    """
    allowed = name.isprintable() and not set(name) & set('/\\:*?"<>|') and not name.startswith(".")
    if not name or not allowed or len(name.encode()) > 200:
        raise UserError(f"Expected {what} without separators, got {name[:200]!r}.")
    return name


class StudiesDatastore(LocalDatastore):
    """The server's own store, which kept its list and its labels by writing over them.

    Labels, images and the list are written beside their place, are on the disk before they take it, and only then is a
    request answered; each change is made to what the file holds at that time, so that the server and its trainings do
    not undo each other's. A list that cannot be read is kept aside and made anew from the files. A label of 0 bytes is
    none. Names in upper case and DICOM files without a suffix are found too. Images may lie elsewhere, read-only.
    """

    _lock: FileLock | None = None
    _config_ts: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # MONAI Label watches for a list that was written over, not for one that was replaced.
        if getattr(self, "_handler", None):
            self._handler.on_moved = self._on_moved
            if os.path.isabs(self._datastore.images_dir):  # it watches the folder of the labels alone
                self._observer.schedule(self._handler, self._datastore.images_dir)

    def _on_moved(self, event: Any) -> None:
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()

    def _on_any_event(self, event: Any) -> None:
        try:
            super()._on_any_event(event)
        except OSError as error:  # which would end the watching
            logger.warning("Cannot take in what changed among the studies: %s", error)

    # The list.

    @contextlib.contextmanager
    def _changing(self, *images: str) -> Iterator[list[ImageLabelModel | None]]:
        """Change images' entries in what the list holds now; where that fails, memory is as it was, too."""
        with self._locked():
            self._init_from_datastore_file()
            known = [self._datastore.objects.get(image) for image in images]
            before = copy.deepcopy(known)
            try:
                yield known
                self._update_datastore_file()
            except BaseException:
                for image, entry in zip(images, before, strict=True):
                    self._datastore.objects.pop(image, None)
                    if entry is not None:
                        self._datastore.objects[image] = entry
                raise

    def _locked(self) -> FileLock:
        if self._lock is None:
            self._lock = FileLock(self._lock_file)  # one object, which a thread may enter again
        return self._lock

    def _read(self) -> None:
        file = Path(self._datastore_config_path)
        if file.exists() and (stamp := _stamp(file)) != self._config_ts:
            self._datastore = LocalDatastoreModel.model_validate_json(file.read_bytes())
            self._datastore.base_path = self._datastore_path
            self._config_ts = stamp

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._locked():
            try:
                self._read()
            except ValueError as error:
                aside = f"{self._datastore_config_path}.{time.strftime('%Y%m%d-%H%M%S')}.damaged"
                os.replace(self._datastore_config_path, aside)
                reason = str(error).splitlines()[0]
                logger.warning("The list of labels was damaged (%s). It is made anew; the old one is %s", reason, aside)

    def _update_datastore_file(self, lock: bool = True) -> None:
        # The text that `json.dumps` gives, in a tenth of its time: of 10,000 studies it has 3 MB.
        content = to_json(self._datastore, exclude={"base_path"}, indent=2, fallback=str)
        with self._locked():
            file = Path(self._datastore_config_path)
            with replacing(file, REMEDY) as unfinished:
                unfinished.write_bytes(content)
            self._config_ts = _stamp(file)

    # The files.

    @contextlib.contextmanager
    def _storing(self, source: str, target: Path) -> Iterator[None]:
        """Have a copy on the disk that takes its place when the block has ended well, the list written in it, too."""
        with self._locked(), replacing(target, REMEDY) as unfinished:
            shutil.copyfile(source, unfinished)
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
            yield

    def _reconcile_datastore(self) -> None:
        with self._locked():
            super()._reconcile_datastore()

    def _to_id(self, file: str) -> tuple[str, str]:
        stem = Path(file).stem if suffix_of(file) == ".nrrd" else stem_of(file)
        return stem, file[len(stem) :]

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        """Files of a folder by the patterns, in lower case; the first of several of one name is the image."""
        found: dict[str, str] = {}
        for file in filter(is_unicode, sorted(os.listdir(path))):
            listed = any(fnmatch(file.lower(), pattern) for pattern in patterns)
            unnamed = suffix_of(file) not in SUFFIXES and not file.startswith(".")
            if listed or (unnamed and Path(path, file).is_file() and is_dicom(Path(path, file))):
                found.setdefault(self._to_id(file)[0], file)
        return {file: file for file in found.values()}

    def _add_non_existing_labels(self, tag: str) -> int:
        folder, added = Path(self._datastore.label_path(tag)), 0
        files = [file for file in folder.iterdir() if suffix_of(file) in LABEL_SUFFIXES and not _is_empty(file)]
        # Of an image's labels in several formats the last one written comes first.
        for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
            image, suffix = self._to_id(file.name)
            known = self._datastore.objects.get(image)
            if known is not None and tag not in known.labels and not file.name.startswith("."):
                known.labels[tag] = DataModel(info={"ts": int(time.time()), "name": file.name}, ext=suffix)
                added += 1
        return added

    def _remove_non_existing(self) -> int:
        removed = super()._remove_non_existing()
        for image, known in self._datastore.objects.items():
            for tag, label in list(known.labels.items()):
                if _is_empty(Path(self._datastore.label_path(tag), self._filename(image, label.ext))):
                    del known.labels[tag]
                    removed += 1
        return removed

    # What requests ask for.

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image of the list; or, by its path, a file or a DICOM series in the folder of the studies."""
        if image_id in self._datastore.objects:
            return str(super().get_image_uri(image_id))
        root = Path(self._datastore.image_path()).resolve()
        path = Path(image_id) if Path(image_id).is_absolute() else root / image_id
        # Where a link in the folder leads is its owner's affair; no request makes one.
        inside = path.is_relative_to(root) and path != root and ".." not in path.parts and "\0" not in image_id
        return str(path) if inside and (path.is_dir() or (path.is_file() and is_supported(path))) else ""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image, and its path. Strategies ask for every image: their folder is resolved once."""
        known = self._datastore.objects.get(image_id)
        if known is None:
            return {}
        path = os.path.join(self._image_folder, self._filename(image_id, known.image.ext))
        return {**copy.deepcopy(known.image.info), "path": os.path.realpath(path) if os.path.islink(path) else path}

    @cached_property
    def _image_folder(self) -> str:
        return os.path.realpath(self._datastore.image_path())

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an image of the formats that are listed.

        Raises:
            ValueError: when its name or its suffix may not become a file's.
        """
        stem, suffix = self._to_id(os.path.basename(image_filename))
        image = checked_name(image_id or stem, "an image's name")
        if not any(fnmatch(f"a{suffix}".lower(), pattern) for pattern in self._extensions):
            raise UserError(f"Expected an image of {', '.join(self._extensions)}, got a file named {suffix!r}.")
        name = self._filename(image, suffix)
        info = {**(image_info or {}), "ts": int(time.time()), "name": name}
        target = Path(self._datastore.image_path(), name)
        with self._storing(image_filename, target), self._changing(image):
            self._datastore.objects[image] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
        return image

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label; one of the same tag is replaced when all of the new one is on the disk.

        Raises:
            ValueError: when the tag or the format may not become a file's name, or the label is empty.
        """
        tag = checked_name(getattr(label_tag, "value", label_tag), "a tag")
        _, suffix = self._to_id(os.path.basename(label_filename))
        if suffix.lower() not in LABEL_SUFFIXES:
            raise UserError(f"Expected a label of {', '.join(LABEL_SUFFIXES)}, got a file named {suffix!r}.")
        if _is_empty(Path(label_filename)):
            raise UserError("Expected a label, got a file of 0 bytes.")
        if image_id not in self._datastore.objects:  # whose name is a file's already
            raise ImageNotFoundException(f"Image {image_id} not found")
        folder, name = Path(self._datastore.label_path(tag)), self._filename(image_id, suffix)
        info = {**(label_info or {}), "ts": int(time.time()), "name": name}
        with self._storing(label_filename, folder / name), self._changing(image_id) as (known,):
            if known is None:
                raise ImageNotFoundException(f"Image {image_id} not found")
            before = known.labels.get(tag)
            known.labels[tag] = DataModel(info=info, ext=suffix)
        if before is not None and before.ext != suffix:
            (folder / self._filename(image_id, before.ext)).unlink(missing_ok=True)
        return image_id

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""
        with self._changing(image_id) as (known,):
            if known is None:
                raise ImageNotFoundException(f"Image {image_id} not found")
            known.image.info.update(info)

    def update_image_infos(self, infos: Mapping[str, Mapping[str, Any]]) -> None:
        """Add to what is known of several images, of those that are there still; the list is written once."""
        with self._changing(*infos) as entries:
            for known, info in zip(entries, infos.values(), strict=True):
                if known is not None:
                    known.image.info.update(info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label."""
        with self._changing(label_id) as (known,):
            if known is None or label_tag not in known.labels:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            known.labels[label_tag].info.update(info)


def _is_empty(file: Path) -> bool:
    return file.is_file() and file.stat().st_size == 0


def _stamp(file: Path) -> tuple[int, int]:
    """Tells a file from the one that it replaced, within the clock's grain too."""
    status = file.stat()
    return status.st_mtime_ns, status.st_ino
