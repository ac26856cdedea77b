# SPDX-License-Identifier: Apache-2.0
"""Archives that outgrow one machine: shares of them, masks that are there already, and what could not be segmented."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kdsam.data.datalist_file import Item, listed_images
from monai_kdsam.data.paths import stem_of
from monai_kdsam.errors import ExistingFileError, UserError
from monai_kdsam.files import check_writable, remembered_sha256, write_text
from monai_kdsam.processes import end_with_torchrun, shard_suffix, wait_for_all
from monai_kdsam.settings import used_keys

__all__ = ["Archive", "mask_path", "masks_made_by", "root_of"]

logger = logging.getLogger(__name__)
RECORD = "made_by.json"
# What of a config decides how masks look, and what of that says only where things are.
DECIDING = ("network", "preprocessing", "inferer", "postprocessing")
PLACES = {"bundle_root", "ckpt_dir", "checkpoint", "dataset_dir", "output_dir", "device", "phase", "imports"}


def masks_made_by(checkpoint: str | Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of what masks depend on: the weights, and what a config says of preparing, inferring and finishing."""
    settings = {key: config.get(key) for key in used_keys(config, DECIDING) - PLACES}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return {"weights": remembered_sha256(checkpoint), "settings": digest}


def root_of(dataset: str | Path) -> str:
    """The folder under whose subfolders masks are laid out alike: a folder's own, or what a datalist's files share."""
    if not Path(dataset).is_file():
        return str(dataset)
    return os.path.commonpath([path.parent for path in listed_images(Path(dataset))])


def mask_path(image: str | Path, root: str | Path, masks: str | Path, ext: str) -> Path:
    """Where the mask of an image lies, as MONAI's SaveImage has it: in the subfolder that the image has in `root`.

    >>> mask_path("in/a/b.nii.gz", "in", "out", ".png").as_posix()
    'out/a/b_mask.png'
    """
    return Path(masks) / os.path.relpath(Path(image).parent, root) / f"{stem_of(image)}_mask{ext}"


class Archive:
    """Images of which each is to be segmented once, by whichever of several processes.

    A mask that is there counts as done: files are written whole or not at all. `made_by.json` beside the masks
    says of which weights and settings they are.

    Args:
        items: dictionaries with `image`, this process's share of them.
        root: the folder of the images; a mask lies in the same subfolder of `masks`.
        masks: folder that is written to.
        ext: of the masks, such as .png.
        made_by: see `masks_made_by`.
        share: number of this process's share, and their count; see `own_shard`.
        overwrite: make anew what is there, of whatever weights.
        check: of the items to segment, gives those that can be, and remembers why the others cannot in its second
            argument, by path. None: all of them.

    Raises:
        FileExistsError: when the masks that are there are of other weights or settings.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        root: str | Path,
        masks: str | Path,
        ext: str,
        made_by: Mapping[str, str],
        share: tuple[int, int] = (0, 1),
        overwrite: bool = False,
        check: Callable[[Sequence[Item], dict[str, str]], list[Item]] | None = None,
    ) -> None:
        end_with_torchrun()
        self.root, self.masks, self.ext = Path(root), Path(masks), ext
        self.failed: dict[str, str] = {}
        self.count = len(items)
        self.failures = self.masks / f"failed{shard_suffix(share)}.txt"
        check_writable(self.masks, "output_dir")
        since = self._since(made_by, overwrite)
        missing = [item for item in items if overwrite or not self._is_done(self.mask(item["image"]), since)]
        self.kept = self.count - len(missing)
        self.missing = check(missing, self.failed) if check else missing
        if self.kept:
            logger.info("%d of %d masks are in %s already.", self.kept, self.count, self.masks)

    def mask(self, image: str | Path) -> Path:
        """Where the mask of an image lies."""
        return mask_path(image, self.root, self.masks, self.ext)

    def close(self) -> None:
        """Tell what could not be segmented, now that all others are, and list it in failed.txt.

        Raises:
            ValueError: with the first twenty of them.
        """
        if self.failed:
            lines = [f"{image}\t{' '.join(reason.split())}\n" for image, reason in self.failed.items()]
            write_text(self.failures, "".join(lines))
        else:
            self.failures.unlink(missing_ok=True)
        wait_for_all()
        if self.failed:
            shown = "\n".join(list(self.failed.values())[:20])
            told = f"{len(self.failed)} of {self.count} images were not segmented, see {self.failures}"
            raise UserError(f"{told}:\n{shown}")

    def _since(self, made_by: Mapping[str, str], overwrite: bool) -> float:
        """Masks that are older are not this run's. Several processes may call it: the first one writes the record."""
        path = self.masks / RECORD
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if record is None or (overwrite and record["made_by"] != made_by):
            record = {"made_by": made_by, "replaces": overwrite}
            write_text(path, json.dumps(record, indent=4))
        if record["made_by"] != made_by:
            different = " and ".join(name for name in made_by if record["made_by"].get(name) != made_by[name])
            raise ExistingFileError(
                f"The masks in {self.masks} are of other {different}. `--overwrite` replaces them; or name another "
                "output folder."
            )
        return path.stat().st_mtime if record["replaces"] else 0.0

    def _is_done(self, mask: Path, since: float) -> bool:
        try:
            return mask.stat().st_mtime >= since
        except FileNotFoundError:
            return False
