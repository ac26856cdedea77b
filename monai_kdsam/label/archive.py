# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's DICOMweb store, mended where it falls short of real archives."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachetools import TTLCache, cached
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import dicom_to_nifti
from monailabel.interfaces.datastore import DefaultLabelTag

from monai_kdsam.dicom.header import checked_uid
from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.label.studies import StudiesDatastore, checked_name

__all__ = ["SeriesDatastore"]

logger = logging.getLogger(__name__)
# Series that hold no images, which the server would offer to be segmented.
NOT_IMAGES = {"SEG", "SR", "PR", "KO", "DOC", "AU", "ECG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "FID"}
# In DICOM JSON.
MODALITY, STUDY, SERIES, REFERENCED_SERIES = "00080060", "0020000D", "0020000E", "00081115"
CONTENT_DATE, CONTENT_TIME = "00080023", "00080033"


def _checked_uid(uid: str) -> str:
    """A UID, which leads out of no folder."""
    if not re.fullmatch(r"[0-9.]*[0-9][0-9.]*", uid):
        raise MissingFileError(f"Expected a SeriesInstanceUID, got {uid!r}.")
    return uid


class SeriesDatastore(DICOMWebDatastore, StudiesDatastore):
    """The server's DICOMweb store, which downloads and converts series, with six differences.

    Images arrive as they are stored, so that the archive need not be able to decompress them; an image has its one
    path from the first request on; a series that is no volume is told so; series without images are not listed; of
    several labels of a series the last one counts, and none is deleted here because a list of series was too old to
    have its image; and its copies are kept as `StudiesDatastore` keeps files.
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
            raise UserError(
                f"The {len(list(folder.iterdir()))} images of series {image_id} differ in size or cannot be decoded, "
                "and MONAI Label addresses whole series: each image needs a series of its own."
            ) from error
        if returned != path:
            returned.unlink(missing_ok=True)
        return str(path)

    def _download(self, series: str, folder: Path) -> None:
        found = self._client.search_for_series(search_filters={"SeriesInstanceUID": series})
        # An archive may ignore a filter.
        found = [item for item in found if _value(item, SERIES) == series]
        if not found:
            raise MissingFileError(f"There is no series {series} in {self.name()}.")
        study = _value(found[0], STUDY)
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
        return self._find_images()

    def _find_images(self) -> list[str]:
        found = self._client.search_for_series(search_filters=self._search_filter)
        return [_value(item, SERIES) for item in found if _value(item, MODALITY) not in NOT_IMAGES]

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the series with a label in the archive, as of when it was last asked, or with one made here."""
        return sorted({*super().get_labeled_images(), *StudiesDatastore.get_labeled_images(self)})

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """The series with a label in the archive, and the last label of each, which is downloaded where it is new."""
        labels = self._last_labels()
        for image, label in labels.items():
            known = self._datastore.label(image, DefaultLabelTag.FINAL)
            if known is None or known.info.get("SeriesInstanceUID") != label:
                self._fetch_label(image, label)
        found: list[dict[str, Any]] = StudiesDatastore.datalist(self, full_path)
        return [item for item in found if Path(item["image"]).name.removesuffix(".nii.gz") in labels]

    def _last_labels(self) -> dict[str, str]:
        """UIDs of the labels in the archive, by the series that they are of: those listed and those served before."""
        images = {*self._find_images(), *self._datastore.objects}
        last: dict[str, tuple[str, str]] = {}
        for item in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            if _value(item, MODALITY) != "SEG":
                continue
            label = _value(item, SERIES)
            header = self._client.retrieve_series_metadata(_value(item, STUDY), label)[0]
            image = _value(_value(header, REFERENCED_SERIES) or {}, SERIES)
            if image in images:
                made = f"{_value(header, CONTENT_DATE)}{_value(header, CONTENT_TIME)}"
                last[image] = max(last.get(image, ("", "")), (made, label))
        return {image: label for image, (_, label) in last.items()}

    def _fetch_label(self, image: str, label: str) -> None:
        try:
            self.get_image_uri(image)
            with tempfile.TemporaryDirectory() as folder:
                self._download(label, Path(folder, label))
                converted = dicom_to_nifti(str(Path(folder, label)), is_seg=True)
        # What pydicom-seg raises of images without a position, of fractions and of segments that overlap.
        except (ValueError, RuntimeError, AttributeError, KeyError) as error:
            logger.warning("The label %s of series %s is passed over: %s", label, image, error)
            return
        StudiesDatastore.save_label(self, image, converted, DefaultLabelTag.FINAL, {"SeriesInstanceUID": label})
        Path(converted).unlink()


def _value(item: Mapping[str, Any], tag: str) -> Any:
    """The first value of an element of DICOM JSON, "" where it has none."""
    return item.get(tag, {}).get("Value", [""])[0]
