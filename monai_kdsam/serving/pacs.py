# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's DICOMweb store, mended where it falls short of real archives."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from cachetools import TTLCache, cached
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore

from monai_kdsam.data.dicom_header import checked_uid
from monai_kdsam.serving.studies import StudiesDatastore, checked_name

__all__ = ["SeriesDatastore"]

# Series that hold no images, which the server would offer to be segmented.
NOT_IMAGES = {"SEG", "SR", "PR", "KO", "DOC", "AU", "ECG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "FID"}


def _checked_uid(uid: str) -> str:
    """A UID, which leads out of no folder."""
    if not re.fullmatch(r"[0-9.]*[0-9][0-9.]*", uid):
        raise FileNotFoundError(f"Expected a SeriesInstanceUID, got {uid!r}.")
    return uid


class SeriesDatastore(DICOMWebDatastore, StudiesDatastore):
    """The server's DICOMweb store, which downloads and converts series, with five differences.

    Images arrive as they are stored, so that the archive need not be able to decompress them; an image has its one
    path from the first request on; a series that is no volume is told so; series without images are not listed; and
    its copies are kept as `StudiesDatastore` keeps files.
    """

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Download and convert a label, by its SeriesInstanceUID.

        Raises:
            FileNotFoundError: when it is no UID.
        """
        path: str = super().get_label_uri(_checked_uid(label_id), checked_name(label_tag, "a tag"), image_id)
        return path

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Any, *others: Any) -> str:
        """Store a label in the archive, a draft beside it.

        Raises:
            ValueError: when the tag may not become a folder's name.
        """
        checked_name(label_tag, "a tag")
        saved: str = super().save_label(_checked_uid(image_id), label_filename, label_tag, label_info, *others)
        return saved

    def get_image_uri(self, image_id: str) -> str:
        """Download and convert a series, unless that is done already.

        Args:
            image_id: SeriesInstanceUID.

        Raises:
            FileNotFoundError: when the archive has no such series.
            ValueError: when its images do not make one volume.
        """
        folder = Path(self._datastore.image_path(), _checked_uid(image_id)).resolve()
        if not folder.is_dir():
            self._download(image_id, folder)
        path = folder.with_name(f"{image_id}.nii.gz")
        try:
            # What the server has just converted it returns under a name of its own, and forgets the file.
            returned = Path(super().get_image_uri(image_id))
        except RuntimeError as error:
            raise ValueError(
                f"The {len(list(folder.iterdir()))} images of series {image_id} differ in size or cannot be decoded, "
                "and MONAI Label addresses whole series: each image needs a series of its own."
            ) from error
        if returned != path:
            returned.unlink(missing_ok=True)
        return str(path)

    def _download(self, series: str, folder: Path) -> None:
        found = self._client.search_for_series(search_filters={"SeriesInstanceUID": series})
        # An archive may ignore a filter.
        found = [item for item in found if item["0020000E"]["Value"] == [series]]
        if not found:
            raise FileNotFoundError(f"There is no series {series} in {self.name()}.")
        study = found[0]["0020000D"]["Value"][0]
        as_stored: Any = (("application/dicom", "*"),)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            whole = Path(unfinished, "series")
            whole.mkdir()
            for instance in self._client.retrieve_series(study, series, media_types=as_stored):
                instance.save_as(whole / f"{checked_uid(instance.SOPInstanceUID, 'SOPInstanceUID')}.dcm")
            try:
                whole.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster
                    raise

    # Asked at every click, for the server's description of itself.
    @cached(cache=TTLCache(maxsize=16, ttl=settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY))
    def list_images(self) -> list[str]:
        """UIDs of the series with images, as of the last MONAI_LABEL_DICOMWEB_CACHE_EXPIRY seconds."""
        found = self._client.search_for_series(search_filters=self._search_filter)
        kinds = {item["0020000E"]["Value"][0]: item.get("00080060", {}).get("Value", [""])[0] for item in found}
        return [series for series, kind in kinds.items() if kind not in NOT_IMAGES]
