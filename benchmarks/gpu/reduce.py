# SPDX-License-Identifier: Apache-2.0
"""What of a pack is made in Python: wheels that compress well, small images, and their list.

python reduce.py PACK [--data FOLDER] [--images N] [--quality 60]    # into a pack's folder; without data, phantoms
python reduce.py PACK --restore                                      # WebP to PNG, which the package reads
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

SIDE = 512
SPLITS = ("training", "validation", "test")


def store(wheel: Path) -> None:
    """Rewrite a wheel without compression, which xz does better, and without its own tests."""

    def kept(name: str) -> bool:
        return "/tests/" not in name and (not name.startswith("skimage/data/") or name.endswith((".py", ".pyi")))

    unfinished = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            if not kept(info.filename):
                continue
            content = source.read(info)
            if info.filename.endswith(".dist-info/RECORD"):
                lines = content.splitlines(keepends=True)
                content = b"".join(line for line in lines if kept(line.partition(b",")[0].decode()))
            target.writestr(info, content, zipfile.ZIP_STORED)
    unfinished.replace(wheel)


def reduce_item(item: dict[str, str], *, data: Path, folder: Path, quality: int) -> dict[str, str]:
    """Write an image as WebP and its mask as TIFF of one bit; the item that names them."""
    stem = Path(item["image"]).stem
    image, mask = Image.open(data / item["image"]).convert("RGB"), Image.open(data / item["label"]).convert("L")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    mask = mask.resize(image.size, Image.Resampling.NEAREST).point(lambda value: 255 * (value > 0)).convert("1")
    image.save(folder / "images" / f"{stem}.webp", quality=quality)
    mask.save(folder / "masks" / f"{stem}.tif", compression="group4")
    return item | {"image": f"images/{stem}.webp", "label": f"masks/{stem}.tif"}


def restore_item(item: dict[str, str], *, folder: Path) -> dict[str, str]:
    """Images and masks as PNG, beside what they are made of."""
    restored = {key: str(Path(item[key]).with_suffix(".png")) for key in ("image", "label")}
    for key, name in restored.items():
        if not (folder / name).exists():
            Image.open(folder / item[key]).save(folder / name, compress_level=1)
    return item | restored


def phantoms(folder: Path) -> tuple[Path, dict[str, list[dict[str, str]]]]:
    """Generated pictures, where there are no others."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from monai_kdsam.data.phantoms import write_phantoms

    write_phantoms(folder, per_kind=8, size=72)
    names = sorted(path.name for path in (folder / "images").iterdir())
    items = [
        {"image": f"images/{name}", "label": f"masks/{name}"} for name in names if (folder / "masks" / name).is_file()
    ]
    return folder, {"training": items[:-4], "validation": items[-4:], "test": []}


def evenly(items: list[dict[str, str]], count: int | None) -> list[dict[str, str]]:
    """So many, spread over the list."""
    return items if count is None or count >= len(items) else [items[i * len(items) // count] for i in range(count)]


def main() -> None:
    """Reduce or restore."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--quality", type=int, default=60)
    parser.add_argument("--restore", action="store_true")
    given = parser.parse_args()
    if given.restore:
        lists = json.loads((given.pack / "packed.json").read_text())
        work, target = partial(restore_item, folder=given.pack), given.pack / "datalist.json"
    else:
        for wheel in (given.pack / "wheels").glob("*.whl"):
            store(wheel)
        data = given.data or given.pack / "phantoms"
        lists = json.loads((data / "datalist.json").read_text()) if given.data else phantoms(data)[1]
        lists = {split: evenly(lists.get(split, []), given.images) for split in SPLITS}
        lists["validation"] = evenly(lists["validation"], given.images and max(4, given.images // 4))
        work, target = (
            partial(reduce_item, data=data, folder=given.pack, quality=given.quality),
            given.pack / "packed.json",
        )
    with ProcessPoolExecutor() as pool:
        lists = {split: list(pool.map(work, lists[split], chunksize=16)) for split in SPLITS}
    target.write_text(json.dumps(lists, indent=0))


if __name__ == "__main__":
    main()
