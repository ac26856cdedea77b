# SPDX-License-Identifier: Apache-2.0
"""One short reader per data set layout: from the folder of an official download to a list of items.

An item is a dictionary: `image` (path), `label` (path, or paths of masks that belong together), `source` (name of the
layout), `subject` (items of one subject never part), `mask_kind` (see `monai_kdsam.transforms.masks`), and where known
`spacing` ([x, y] in mm), `official_split` ("training", "validation" or "test") and `origin` (the set, of several that
a datalist mixes). Paths are absolute, items sorted. An
image whose mask is missing has an empty list of them, for the check to name it.

The layouts "folder", "kvasir" and "datalist" may have unlabeled images, which a teacher can show to a student. Their
items have neither `label` nor `mask_kind` nor `official_split`. Every reader raises a MissingFileError where the layout
is another one, and a UserError where no image has a mask.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path

from monai_kdsam.data.datalist_file import LOSSY_SUFFIXES, SPLITS, UNLABELED, Item, read_list
from monai_kdsam.data.paths import stem_of, suffix_of, supported_files
from monai_kdsam.errors import MissingFileError, UserError

__all__ = [
    "LAYOUTS",
    "SPLITS",
    "UNLABELED",
    "Item",
    "read_busi",
    "read_datalist",
    "read_dataset",
    "read_folder",
    "read_hc18",
    "read_head_circumferences",
    "read_isic2017",
    "read_kvasir",
]

logger = logging.getLogger(__name__)
HC18_TABLE = "training_set_pixel_size_and_HC.csv"
ISIC_FOLDERS = {"Training": "training", "Validation": "validation", "Test_v2": "test", "Test": "test"}


def read_kvasir(root: str | Path) -> list[Item]:
    """Read Kvasir-SEG: ``images/*.jpg`` and ``masks/*.jpg`` of equal names, masks lossy, and ``unlabeled/``."""
    lossy = {"mask_kind": "lossy"}
    return [{**item, "source": "kvasir", **(lossy if "label" in item else {})} for item in read_folder(root)]


def read_folder(root: str | Path) -> list[Item]:
    """Read a plain folder: ``images/`` and ``masks/`` with equal stems, any supported format; JPEG masks are lossy.

    Both may have subfolders, which are the subjects. Images in ``unlabeled/``, if there is such a folder, have no mask.
    """
    images, masks = (_existing(root, name, "images/NAME.png and masks/NAME.png") for name in ("images", "masks"))
    by_name: dict[str, list[Path]] = {}
    for path in supported_files(masks, below=True):
        by_name.setdefault(_name_and_subject(path, masks)[0], []).append(path)
    items = []
    for image in supported_files(images, below=True):
        name, subject = _name_and_subject(image, images)
        found = by_name.get(name, [])
        kind = "lossy" if any(suffix_of(path) in LOSSY_SUFFIXES for path in found) else "binary"
        items.append(_item(image, found, "folder", subject, kind))
        if len(found) > 1:
            raise UserError(f"Expected one mask for {image}, got {', '.join(map(str, found))}. Rename or join them.")
    unlabeled = Path(root) / UNLABELED
    for image in supported_files(unlabeled, below=True) if unlabeled.is_dir() else ():
        name, subject = _name_and_subject(image, unlabeled)
        # A subject of its own: an unlabeled 0001.png is another image than the labeled one of this name.
        subject = f"{UNLABELED}/{name}" if subject == name else subject
        items.append({"image": str(image.absolute()), "source": "folder", "subject": subject})
    unmatched = [item for item in items if item.get("label") == []]
    claimed = {item["label"] for item in items if item.get("label")}
    spare = [path.name for path in sorted(masks.rglob("*")) if path.is_file() and str(path.absolute()) not in claimed]
    if spare and unmatched:
        shown = ", ".join(spare[:5]) + (f" and {len(spare) - 5} more" if len(spare) > 5 else "")
        hint = f"Of no image are in {masks}: {shown}. A mask has its image's name and a known format."
        logger.warning(hint)
        for item in unmatched:
            item["hint"] = hint
    return _checked(items, root)


def read_isic2017(root: str | Path) -> list[Item]:
    """Read ISIC 2017, task 1: ``ISIC-2017_*_Data`` and ``ISIC-2017_*_Part1_GroundTruth``, any of the three parts."""
    expected = "ISIC-2017_Training_Data/ISIC_*.jpg and ISIC-2017_Training_Part1_GroundTruth/ISIC_*_segmentation.png"
    parts = [part for part in ISIC_FOLDERS if (Path(root) / f"ISIC-2017_{part}_Data").is_dir()]
    items = []
    for part in parts or ["Training"]:
        images = _existing(root, f"ISIC-2017_{part}_Data", expected)
        masks = _existing(root, f"ISIC-2017_{part}_Part1_GroundTruth", expected)
        for image in sorted(images.glob("*.jpg")):
            mask = masks / f"{image.stem}_segmentation.png"
            item = _item(image, [mask] if mask.is_file() else [], "isic2017", image.stem)
            items.append({**item, "official_split": ISIC_FOLDERS[part]})
    return _checked(items, root)


def read_hc18(root: str | Path) -> list[Item]:
    """Read HC18: ``training_set/NNN_HC.png`` with outlines ``NNN_HC_Annotation.png``, and the table of pixel sizes.

    The three digits are the subject: ``198_HC`` and ``198_2HC`` are frames of one.
    """
    expected = f"training_set/000_HC.png, training_set/000_HC_Annotation.png and {HC18_TABLE}"
    folder = _existing(root, "training_set", expected)
    pixel_size = _read_hc18_table(root, 1)
    items = []
    for image in sorted(path for path in folder.glob("*.png") if not path.stem.endswith("_Annotation")):
        mask = image.with_name(f"{image.stem}_Annotation.png")
        item = _item(image, [mask] if mask.is_file() else [], "hc18", image.stem[:3], "outline")
        if image.name not in pixel_size:
            raise UserError(f"Expected a row for {image.name} in {HC18_TABLE}, got none. Add its pixel size in mm.")
        items.append({**item, "spacing": [pixel_size[image.name]] * 2})
    return _checked(items, root)


def read_head_circumferences(root: str | Path) -> dict[str, float]:
    """Read HC18's official head circumferences in mm, by name of the image file."""
    return _read_hc18_table(root, 2)


def _read_hc18_table(root: str | Path, column: int) -> dict[str, float]:
    table = _existing(root, HC18_TABLE, "HC18's official download")
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in list(csv.reader(file))[1:] if row]
    try:
        return {row[0].strip(): float(row[column]) for row in rows}
    except (IndexError, ValueError) as error:
        raise UserError(f"Expected rows of image, pixel size and head circumference in {table}: {error}.") from error


def read_busi(root: str | Path) -> list[Item]:
    """Read BUSI: ``benign/``, ``malignant/``, ``normal/`` with ``NAME.png``, ``NAME_mask.png``, ``NAME_mask_1.png``."""
    expected = "benign/benign (1).png, benign/benign (1)_mask.png, and the same in malignant/ and normal/"
    names = [name for name in ("benign", "malignant", "normal") if (Path(root) / name).is_dir()]
    items = []
    for folder in [_existing(root, name, expected) for name in names or ["benign"]]:
        masks: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("*_mask*.png")):
            masks.setdefault(path.stem.rpartition("_mask")[0], []).append(path)
        images = sorted(path for path in folder.glob("*.png") if "_mask" not in path.stem)
        items += [_item(image, masks.get(image.stem, []), "busi", image.stem) for image in images]
    return _checked(items, root)


def read_datalist(root: str | Path) -> list[Item]:
    """Read a datalist, JSON or CSV, see :func:`monai_kdsam.data.datalist_file.read_list`."""
    return _checked(read_list(Path(root)), root)


LAYOUTS: dict[str, Callable[[str | Path], list[Item]]] = {
    "kvasir": read_kvasir,
    "isic2017": read_isic2017,
    "hc18": read_hc18,
    "busi": read_busi,
    "folder": read_folder,
    "datalist": read_datalist,
}


def read_dataset(layout: str, root: str | Path) -> list[Item]:
    """Read the data set below `root` (for "datalist": the file `root`), which has the named layout.

    Raises:
        MissingFileError: the layout is another one, or there is no such folder.
        UserError: the layout is not known, no image has a mask.
    """
    if layout not in LAYOUTS:
        raise UserError(f"Unknown data set layout {layout!r}. Expected one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[layout](root)


def _item(image: Path, masks: list[Path], source: str, subject: str, mask_kind: str = "binary") -> Item:
    label = [str(path.absolute()) for path in masks]
    return {
        "image": str(image.absolute()),
        "label": label[0] if len(label) == 1 else label,
        "source": source,
        "subject": subject,
        "mask_kind": mask_kind,
    }


def _checked(items: list[Item], root: str | Path) -> list[Item]:
    if not any(item.get("label") for item in items):
        raise UserError(f"No image in {root} has a mask. Expected at least one; check that the download is complete.")
    return sorted(items, key=lambda item: item["image"])


def _existing(root: str | Path, name: str, expected: str) -> Path:
    path = Path(root) / name
    if not path.exists():
        raise MissingFileError(f"There is no {name} in {root}. Expected this layout: {expected}.")
    return path


def _name_and_subject(path: Path, folder: Path) -> tuple[str, str]:
    """What image and mask have in common, and the subject: the subfolder, or the image itself where there is none."""
    parent = path.relative_to(folder).parent
    name = (parent / stem_of(path)).as_posix()
    return name, name if parent == Path() else parent.as_posix()
