# SPDX-License-Identifier: Apache-2.0
"""Pictures segmented by a bundle: of each a mask, a picture to look at, and how good the network expects it to be."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from monai_kdsam.data.image_reader import list_images
from monai_kdsam.data.mask_writer import MaskWriter
from monai_kdsam.data.paths import check_names, split_frame, stem_of
from monai_kdsam.data.picture_file import decode
from monai_kdsam.drawing import draw_contour, draw_prompt
from monai_kdsam.errors import ExistingFileError, MissingFileError, UserError
from monai_kdsam.files import ROOM, check_writable, replacing
from monai_kdsam.inferers import BundlePredictor, Segmentation
from monai_kdsam.picture import Picture, to_rgb
from monai_kdsam.transforms.host_prompts import points_from_request

__all__ = ["segment"]

OUTLINE, VIEWED_AT = (0, 255, 255), 768
# A request's names, and those of the command line.
OPTIONS = {"roi": "--box", "foreground": "--click", "background": "--background"}


def segment(
    pictures: str | Path,
    out: str | Path,
    *,
    bundle: str | Path | None = None,
    box: Sequence[float] | None = None,
    clicks: Sequence[Sequence[float]] = (),
    background: Sequence[Sequence[float]] = (),
    device: str | None = None,
    overwrite: bool = False,
) -> str:
    """Segment a picture, or all pictures below a folder, and tell about each in a line.

    Args:
        pictures: a file, one frame of a file (`cine#frame3.dcm`) or a folder.
        out: folder to write to: NAME_mask.png, 0 and 255, and NAME_overlay.png with the outline and the prompts.
        bundle: of pictures; by default the one that comes with the package.
        box: x1, y1, x2, y2 in pixels around what is meant. Prompts are for one picture.
        clicks: x, y on it.
        background: x, y beside it.
        device: as in "cpu" or "cuda:1"; by default the first GPU, or the CPU.
        overwrite: replace what is there already. Without it a folder's masks are kept, and one picture's is an error.

    Returns:
        The last line.

    Raises:
        FileNotFoundError: when there is no such picture, folder or bundle.
        FileExistsError: when one picture's mask is there already.
        ValueError: when a prompt is not on the picture, a mask would be written over a picture, or some pictures could
            not be segmented, after all others were.
    """
    one = not Path(pictures).is_dir()
    request: dict[str, Any] = {"foreground": list(clicks), "background": list(background), "roi": box}
    if not one and any(request.values()):
        raise UserError(f"Expected one picture with `--box`, `--click` or `--background`, got the folder {pictures}.")
    targets = _targets(Path(pictures), Path(out))
    kept = {} if overwrite else {image: target for image, target in targets.items() if target.exists()}
    if one and kept:
        raise ExistingFileError(f"{kept.popitem()[1]} exists already. `--overwrite` replaces it.")
    for target in kept.values():
        _tell(f"{target}: kept, as it is there already (`--overwrite` replaces it)")
    asked = {image: target for image, target in targets.items() if image not in kept}
    if not asked:
        return _summary(0, len(kept), out)
    check_writable(Path(out), "--out")
    predictor = BundlePredictor(bundle, **({"device": device} if device else {}))
    if one:
        image, target = asked.popitem()
        return _write(image, *_predict(predictor, image, request), target, request)
    failed = _segment_all(predictor, asked)
    if failed:
        raise UserError(f"{len(failed)} of {len(targets)} pictures were not segmented:\n" + "\n".join(failed))
    return _summary(len(asked), len(kept), out)


def _summary(made: int, kept: int, out: str | Path) -> str:
    counts = f"Segmented {made} picture{'s' * (made != 1)}" + (f", kept {kept} mask{'s' * (kept != 1)}" if kept else "")
    return f"{counts}; all are in {out}, with overlays."


def _targets(pictures: Path, out: Path) -> dict[str, Path]:
    """Where the mask of each picture goes, in the folders in which the pictures lie.

    Raises:
        ValueError: when two masks would go to one file, or one over a picture.
    """
    if not pictures.is_dir():
        if not split_frame(pictures)[0].is_file():
            raise MissingFileError(f"Expected a picture or a folder of pictures, but there is none at {pictures}.")
        return {str(pictures): out / f"{stem_of(pictures)}_mask.png"}
    if out.resolve() == pictures.resolve():
        raise UserError(f"Expected `--out` to be another folder than that of the pictures, got {out}.")
    items = list_images(pictures)
    if pictures.resolve() in out.resolve().parents:  # masks of before are no pictures
        items = [item for item in items if out.resolve() not in Path(item["image"]).resolve().parents]
    check_names(items)
    images = [Path(item["image"]) for item in items]
    targets = {str(image): out / image.parent.relative_to(pictures) / f"{stem_of(image)}_mask.png" for image in images}
    inputs = {image.resolve() for image in images}
    for target in (file for mask in targets.values() for file in (mask, _overlay(mask))):
        if target.resolve() in inputs:
            raise UserError(f"Expected `--out` to be a folder without the pictures, but {target} is one of them.")
    return targets


def _overlay(mask: Path) -> Path:
    return mask.with_name(f"{mask.name.removesuffix('_mask.png')}_overlay.png")


def _segment_all(predictor: BundlePredictor, targets: Mapping[str, Path]) -> list[str]:
    """Segment pictures without a prompt; returns what is wrong with those that cannot be."""
    failed = []
    for image, target in targets.items():
        try:
            picture, found = _predict(predictor, image, {})
        except UserError as error:
            failed.append(str(error))
            continue
        _tell(_write(image, picture, found, target, {}))
    return failed


def _predict(predictor: BundlePredictor, image: str, request: Mapping[str, Any]) -> tuple[Picture, Segmentation]:
    picture = decode(image)
    try:
        return picture, predictor.predict(to_rgb(picture), **request)
    except UserError as error:
        message = str(error)
        for name, option in OPTIONS.items():
            message = message.replace(f"`{name}`", f"`{option}`")
        raise UserError(message) from error


def _write(image: str, picture: Picture, found: Segmentation, mask: Path, request: Mapping[Any, Any]) -> str:
    """Write the mask and the overlay of a picture; returns a line about it."""
    pixels = to_rgb(picture)
    drawn = draw_contour(pixels, found.mask, OUTLINE, viewed_at=VIEWED_AT)
    drawn = draw_prompt(drawn, *points_from_request(request, pixels.shape[1::-1]), viewed_at=VIEWED_AT)
    with replacing(_overlay(mask), ROOM) as unfinished:
        Image.fromarray(drawn).save(unfinished, format="PNG")
    writer = MaskWriter()
    writer.set_data_array(found.mask.T[None])
    writer.set_metadata({"filename_or_obj": image})
    writer.write(mask)
    turned = "" if picture.orientation == 1 else "; viewers turn the picture, by EXIF, and not the mask"
    iou = min(max(found.iou, 0.0), 1.0)
    return f"{mask}: {found.mask.mean():.1%} of the picture, estimated IoU {iou:.2f}{turned}"


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
