# SPDX-License-Identifier: Apache-2.0
"""One short reader per data set layout: from the folder of an official download to a list of items.

An item is a dictionary: `image` (path), `label` (path, or paths of masks that belong together), `source` (name of the
layout), `subject` (items of one subject never part), `mask_kind` (see `monai_kdsam.transforms.masks`), and where known
`spacing` ([x, y] in mm) and `official_split` ("training", "validation" or "test"). Paths are absolute, items sorted.

The layouts "folder", "kvasir" and "datalist" may have unlabeled images, which a teacher can show to a student. Their
items have neither `label` nor `mask_kind` nor `official_split`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from monai_kdsam.data.decoding import split_frame, stem_of, suffix_of, supported_files

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

Item = dict[str, Any]

SPLITS = ("training", "validation", "test")
UNLABELED = "unlabeled"
LOSSY_SUFFIXES = (".jpg", ".jpeg")
ISIC_FOLDERS = {"Training": "training", "Validation": "validation", "Test_v2": "test", "Test": "test"}


def read_kvasir(root: str | Path) -> list[Item]:
    """Read Kvasir-SEG: ``images/*.jpg`` and ``masks/*.jpg`` of equal names, masks lossy, and ``unlabeled/``.

    Raises:
        FileNotFoundError: the layout is another one.
        ValueError: there are no images, or images without a mask.
    """
    lossy = {"mask_kind": "lossy"}
    return [{**item, "source": "kvasir", **(lossy if "label" in item else {})} for item in read_folder(root)]


def read_folder(root: str | Path) -> list[Item]:
    """Read a plain folder: ``images/`` and ``masks/`` with equal stems, any supported format; JPEG masks are lossy.

    Images in ``unlabeled/``, if there is such a folder, have no mask.

    Raises:
        FileNotFoundError: the layout is another one.
        ValueError: there are no images, images without a mask, or two masks of one stem.
    """
    images, masks = (_existing(root, name, "images/NAME.png and masks/NAME.png") for name in ("images", "masks"))
    by_stem: dict[str, list[Path]] = {}
    for path in supported_files(masks):
        by_stem.setdefault(stem_of(path), []).append(path)
    items = []
    for image in supported_files(images):
        found = by_stem.get(stem_of(image), [])
        kind = "lossy" if any(suffix_of(path) in LOSSY_SUFFIXES for path in found) else "binary"
        items.append(_item(image, found, "folder", stem_of(image), kind))
        if len(found) > 1:
            raise ValueError(f"Expected one mask for {image}, got {', '.join(map(str, found))}. Rename or join them.")
    unlabeled = Path(root) / UNLABELED
    if unlabeled.is_dir():
        # Subjects of their own: an unlabeled 0001.png is another image than the labeled one of this name.
        items += [_unlabeled(image, "folder", f"{UNLABELED}/{stem_of(image)}") for image in supported_files(unlabeled)]
    claimed = {path for item in items for path in _paths(item.get("label", ()))}
    spare = [path.name for path in sorted(masks.iterdir()) if path.is_file() and str(path.absolute()) not in claimed]
    return _checked(items, root, spare)


def read_isic2017(root: str | Path) -> list[Item]:
    """Read ISIC 2017, task 1: ``ISIC-2017_*_Data`` and ``ISIC-2017_*_Part1_GroundTruth``, any of the three parts.

    Raises:
        FileNotFoundError: the layout is another one.
        ValueError: there are no images, or images without a mask.
    """
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

    Raises:
        FileNotFoundError: the layout is another one.
        ValueError: there are no images, images without a mask, or images that the table lacks.
    """
    expected = "training_set/000_HC.png, training_set/000_HC_Annotation.png and training_set_pixel_size_and_HC.csv"
    folder = _existing(root, "training_set", expected)
    table = _existing(root, "training_set_pixel_size_and_HC.csv", expected)
    with open(table, newline="") as file:
        rows = list(csv.reader(file))[1:]
    pixel_size = {row[0].strip(): float(row[1]) for row in rows if row}
    items = []
    for image in sorted(path for path in folder.glob("*.png") if not path.stem.endswith("_Annotation")):
        mask = image.with_name(f"{image.stem}_Annotation.png")
        item = _item(image, [mask] if mask.is_file() else [], "hc18", image.stem[:3], "outline")
        if image.name not in pixel_size:
            raise ValueError(f"Expected a row for {image.name} in {table}, got none. Add its pixel size in mm.")
        items.append({**item, "spacing": [pixel_size[image.name]] * 2})
    return _checked(items, root)


def read_head_circumferences(root: str | Path) -> dict[str, float]:
    """Read HC18's official head circumferences in mm, by name of the image file.

    Raises:
        FileNotFoundError: there is no ``training_set_pixel_size_and_HC.csv``.
        ValueError: a row has no circumference.
    """
    table = _existing(root, "training_set_pixel_size_and_HC.csv", "HC18's official download")
    with open(table, newline="") as file:
        rows = [row for row in list(csv.reader(file))[1:] if row]
    try:
        return {row[0].strip(): float(row[2]) for row in rows}
    except (IndexError, ValueError) as error:
        raise ValueError(f"Expected rows of image, pixel size and head circumference in {table}: {error}.") from error


def read_busi(root: str | Path) -> list[Item]:
    """Read BUSI: ``benign/``, ``malignant/`` and ``normal/`` with ``NAME.png``, ``NAME_mask.png``, ``NAME_mask_1.png``.

    Raises:
        FileNotFoundError: the layout is another one.
        ValueError: there are no images, or images without a mask.
    """
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
    """Read a MONAI datalist: a JSON file with lists "training", "validation", "test" of items with image and label.

    Paths are relative to the file, or absolute. An item may bring its own `subject`, `mask_kind` and `spacing`. Items
    of a list "unlabeled" need an image only, and their `subject` if others have it.

    Raises:
        FileNotFoundError: there is no such file, or images or masks it names do not exist.
        ValueError: it is no datalist, empty, or has items without image or label.
    """
    path = Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"Expected the path of a datalist JSON, but there is no file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, got something else: {error}.") from error
    lists = {split: content[split] for split in SPLITS if split in content} if isinstance(content, dict) else {}
    if not lists:
        raise ValueError(f"Expected a JSON object with lists {', '.join(SPLITS)} in {path}, got none of them.")
    items = []
    for split, entries in lists.items():
        if not isinstance(entries, list):
            raise ValueError(f'Expected "{split}" in {path} to be a list, got {entries!r}.')
        for number, entry in enumerate(entries):
            if not _is_listed(entry):
                raise ValueError(
                    f'Expected "image", a path, and "label", a path or several, in item {number} of "{split}" in '
                    f"{path}, got {entry}."
                )
            items.append({**_listed(entry, path.absolute().parent), "official_split": split})
    items += _listed_without_labels(content.get(UNLABELED, []), path)
    files = [file for item in items for file in (item["image"], *_paths(item.get("label", ())))]
    missing = [file for file in files if not split_frame(file)[0].is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} files listed in {path} do not exist: {_some(missing)}")
    return _checked(items, path)


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
        FileNotFoundError: the layout is another one, or there is no such folder.
        ValueError: the layout is not known, there are no images, or images without a mask.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown data set layout {layout!r}. Expected one of {', '.join(LAYOUTS)}.")
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


def _unlabeled(image: Path, source: str, subject: str) -> Item:
    return {"image": str(image.absolute()), "source": source, "subject": subject}


def _checked(items: list[Item], root: str | Path, spare: Sequence[str] = ()) -> list[Item]:
    labeled = [item for item in items if "label" in item]
    hint = ""
    if spare:
        hint = f" Of no image are in masks/: {_some([*spare], 5)} A mask has its image's name and a known format."
    if not labeled:
        raise ValueError(f"No image in {root} has a mask. Expected at least one; check that the download is complete.")
    bare = [item["image"] for item in labeled if not item["label"]]
    if bare:
        raise ValueError(
            f"{len(bare)} images have no mask. Add the masks or remove the images; in the layouts folder and datalist "
            f"the images may move to `{UNLABELED}`: {_some(bare)}{hint}"
        )
    return sorted(items, key=lambda item: item["image"])


def _existing(root: str | Path, name: str, expected: str) -> Path:
    path = Path(root) / name
    if not path.exists():
        raise FileNotFoundError(f"There is no {name} in {root}. Expected this layout: {expected}.")
    return path


def _is_listed(entry: Any) -> bool:
    if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
        return False
    label = entry["label"]
    return isinstance(entry["image"], str) and all(
        isinstance(path, str) for path in (label if isinstance(label, list) and label else [label])
    )


def _listed(entry: Item, folder: Path) -> Item:
    image = str(folder / entry["image"])
    label = [str(folder / path) for path in _paths(entry["label"])]
    kind = "lossy" if any(suffix_of(path) in LOSSY_SUFFIXES for path in label) else "binary"
    label_entry = label if isinstance(entry["label"], list) else label[0]
    own = {"image": image, "label": label_entry, "source": "datalist", "subject": _subject(entry)}
    return {"mask_kind": kind, **entry, **own}


def _subject(entry: Item) -> str:
    return str(entry.get("subject", entry["image"]))


def _listed_without_labels(entries: Any, file: Path) -> list[Item]:
    if not isinstance(entries, list):
        raise ValueError(f'Expected "{UNLABELED}" in {file} to be a list, got {entries!r}.')
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise ValueError(f'Expected "image", a path, in item {number} of "{UNLABELED}" in {file}, got {entry}.')
    folder = file.absolute().parent
    return [_unlabeled(folder / entry["image"], "datalist", _subject(entry)) for entry in entries]


def _paths(label: str | Iterable[str]) -> list[str]:
    return [label] if isinstance(label, str) else list(label)


def _some(files: list[str], count: int = 20) -> str:
    return ", ".join(files[:count]) + (f", and {len(files) - count} more" if len(files) > count else "") + "."
