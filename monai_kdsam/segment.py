# SPDX-License-Identifier: Apache-2.0
"""Pictures segmented by a bundle: of each a mask, a picture to look at, and how good the network expects it to be."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from monai_kdsam.data.archive import Archive, mask_path, root_of
from monai_kdsam.data.image_reader import list_images
from monai_kdsam.data.mask_writer import MaskWriter
from monai_kdsam.data.paths import split_frame, stem_of
from monai_kdsam.data.picture_file import decode
from monai_kdsam.drawing import draw_contour, draw_prompt
from monai_kdsam.errors import ExistingFileError, MissingFileError, UserError
from monai_kdsam.files import ROOM, check_writable, replacing
from monai_kdsam.inferers import BundlePredictor, Segmentation
from monai_kdsam.networks.memory import EmbeddingCache
from monai_kdsam.picture import Picture, to_rgb
from monai_kdsam.processes import own_shard
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
    shard: str | None = None,
) -> str:
    """Segment a picture, or all pictures below a folder or of a datalist, and tell about each in a line.

    Args:
        pictures: a file, one frame of a file (`cine#frame3.dcm`), a folder or a datalist (.json, .csv).
        out: folder to write to: NAME_mask.png, 0 and 255, and NAME_overlay.png with the outline and the prompts.
        bundle: of pictures; by default the one that comes with the package.
        box: x1, y1, x2, y2 in pixels around what is meant. Prompts are for one picture.
        clicks: x, y on it.
        background: x, y beside it.
        device: as in "cpu" or "cuda:1"; by default the first GPU, or the CPU.
        overwrite: replace what is there already. Without it a folder's masks are kept, and one picture's is an error.
        shard: "3/64" for every 64th picture, from the third on; torchrun's processes share the pictures by themselves.

    Returns:
        The last line.

    Raises:
        FileNotFoundError: when there is no such picture, folder or bundle.
        FileExistsError: when one picture's mask is there already, or a folder's are of other weights or settings.
        ValueError: when a prompt is not on the picture, a mask would be written over a picture, or some pictures could
            not be segmented, after all others were.
    """
    request: dict[str, Any] = {"foreground": list(clicks), "background": list(background), "roi": box}
    if _is_archive(Path(pictures)):
        if any(request.values()):
            raise UserError(f"Expected one picture with `--box`, `--click` or `--background`, got {pictures}.")
        return _segment_all(Path(pictures), Path(out), bundle, device, overwrite=overwrite, shard=shard)
    if not split_frame(pictures)[0].is_file():
        raise MissingFileError(f"Expected a picture or a folder of pictures, but there is none at {pictures}.")
    target = Path(out) / f"{stem_of(pictures)}_mask.png"
    if shard:
        raise UserError(f"Expected a folder or a datalist with `--shard`, got the picture {pictures}.")
    if target.exists() and not overwrite:
        raise ExistingFileError(f"{target} exists already. `--overwrite` replaces it.")
    check_writable(Path(out), "--out")
    return _write(str(pictures), *_predict(_predictor(bundle, device), str(pictures), request), target, request)


def _is_archive(pictures: Path) -> bool:
    return pictures.is_dir() or (pictures.suffix.lower() in (".json", ".csv") and pictures.is_file())


def _predictor(bundle: str | Path | None, device: str | None) -> BundlePredictor:
    return BundlePredictor(bundle, **({"device": device} if device else {}))


def _segment_all(
    pictures: Path, out: Path, bundle: str | Path | None, device: str | None, *, overwrite: bool, shard: str | None
) -> str:
    """Segment this process's share of an archive, without a prompt, but for what is there already."""
    share = own_shard(shard)
    items, root = _listed(pictures, out, share)
    check_writable(out, "--out")
    predictor = _predictor(bundle, device)
    predictor.network.embeddings = EmbeddingCache(0)  # each picture is asked about once
    archive = Archive(
        items, root=root, masks=out, ext=".png", made_by=predictor.made_by, share=share, overwrite=overwrite
    )
    todo = tqdm(archive.missing, desc="segmenting", unit=" images", disable=None)
    for item in todo:
        try:
            picture, found = _predict(predictor, item["image"], {})
        except UserError as error:
            archive.failed[item["image"]] = str(error)
            continue
        with todo.external_write_mode(sys.stdout):
            _tell(_write(item["image"], picture, found, archive.mask(item["image"]), {}))
    archive.close()
    made, kept = len(archive.missing), archive.kept
    counts = f"Segmented {made} picture{'s' * (made != 1)}"
    counts += f", kept {kept} mask{'s' * (kept != 1)} that are there already (`--overwrite` replaces them)" * bool(kept)
    return f"{counts}; all are in {out}, with overlays."


def _listed(pictures: Path, out: Path, share: tuple[int, int]) -> tuple[list[dict[str, str]], Path]:
    """This process's pictures, and the folder whose subfolders the masks have as well."""
    root = Path(root_of(pictures))
    if out.resolve() == root.resolve():
        raise UserError(f"Expected `--out` to be another folder than that of the pictures, got {out}.")
    inside = root.resolve() in out.resolve().parents  # masks of before are no pictures
    items = list_images(pictures, share, without=out if inside else None)
    if out.resolve() in root.resolve().parents:
        _check_targets([item["image"] for item in (items if share[1] == 1 else list_images(pictures))], root, out)
    return items, root


def _check_targets(images: Sequence[str], root: Path, out: Path) -> None:
    """Raise a ValueError when a mask or an overlay would be written over a picture."""
    inputs = {os.path.realpath(image) for image in images}
    for image in images:
        mask = mask_path(image, root, out, ".png")
        for target in (mask, _overlay(mask)):
            if os.path.realpath(target) in inputs:
                raise UserError(f"Expected `--out` to be a folder without the pictures, but {target} is one of them.")


def _overlay(mask: Path) -> Path:
    return mask.with_name(f"{mask.name.removesuffix('_mask.png')}_overlay.png")


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
