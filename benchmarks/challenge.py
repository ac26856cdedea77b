# SPDX-License-Identifier: Apache-2.0
"""`predict-npz` as the CVPR challenges measure it: a process for each case, with its start, within 8 GB.

    python -m monai_kdsam export --bundle bundles/kdsam_deepgrow_2d --output EXPORT
    python benchmarks/challenge.py EXPORT --pictures DATALIST --volumes FOLDER ... [--threads 2]

The challenges' own cases are not free to use; these have their keys and shapes. `generated` are for time and memory.
Pictures are those of the datalist's `validation`, volumes those of `imagesTr` and `labelsTr` in a folder, NIfTI, mapped
from their 0.5 to 99.5 percentiles; of each source there are a few, and of a volume's labels the largest few are asked
for. Boxes are the tight ones, and clicks are made as the organizers' script makes them: in the middle of the largest
error. DSC and NSD are means over labels, then over cases; NSD has a tolerance of 2 mm, 2 pixels of a picture. AUC is
the organizers' too: of the five answers to clicks, so that 4 is the most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from machine import table, write_result
from monai.metrics import compute_surface_dice
from numpy.typing import NDArray
from PIL import Image
from scipy import integrate, ndimage

from monai_kdsam.mask_prompts import box_from_mask

LIMIT = 8 * 10**9  # bytes
CLICKS = 5
MOST_LABELS = 4
PICTURES, VOLUME = ((256, 256), (512, 512), (800, 1200), (1500, 1500)), (100, 512, 512)
# A small process starts the one that is measured: a large one's own peak would count as its child's.
LAUNCH = f"""
import json, os, resource, sys, time
start = time.perf_counter()
child = os.fork()
if not child:
    resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))
    os.dup2(2, 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
print(json.dumps([time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Case(NamedTuple):
    """Pixels, reference labels and the size of a pixel; z, y, x."""

    kind: str
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    spacing: tuple[float, ...]


class Answer(NamedTuple):
    dsc: float
    nsd: float
    seconds: float
    processor: float
    mebibytes: float


def generated() -> Iterator[Case]:
    """Ellipses and an ellipsoid, brighter than what is around them."""
    rng = np.random.default_rng(0)
    for shape, count in ((shape, count) for shape in PICTURES for count in (1, 4)):
        labels = np.zeros(shape, np.uint8)
        for label in range(1, count + 1):
            labels[ellipse(shape, [0.3 + 0.4 * (label > 2), 0.3 + 0.4 * (label % 2)], 0.15)] = label
        pixels = rng.integers(0, 90, (*shape, 3), dtype=np.uint8) + 90 * (labels > 0)[..., None].astype(np.uint8)
        yield Case(f"generated, {shape[1]} x {shape[0]}, {count} box{'es' * (count > 1)}", pixels, labels, (1.0, 1.0))
    labels = ellipse(VOLUME, [0.5] * 3, 0.48).astype(np.uint8)
    pixels = rng.integers(0, 90, VOLUME, dtype=np.uint8) + 90 * labels
    yield Case("generated, 100 slices of 512 x 512, 1 box", pixels, labels, (1.0, 1.0, 1.0))


def ellipse(shape: tuple[int, ...], center: list[float], radius: float) -> NDArray[np.bool_]:
    axes = np.ogrid[tuple(slice(0, side) for side in shape)]
    return sum(((at / side - middle) / radius) ** 2 for at, side, middle in zip(axes, shape, center, strict=True)) < 1


def pictures(datalist: Path, per_source: int) -> Iterator[Case]:
    by_source: dict[str, list[dict[str, str]]] = {}
    for item in json.loads(datalist.read_text(encoding="utf-8"))["validation"]:
        by_source.setdefault(item["source"], []).append(item)
    for source, items in sorted(by_source.items()):
        for item in items[:: max(1, len(items) // per_source)][:per_source]:
            image, label = (Image.open(datalist.parent / item[key]) for key in ("image", "label"))
            labels = (np.asarray(label.convert("L")) > 127).astype(np.uint8)
            if labels.any():
                yield Case(source, np.asarray(image.convert("RGB")), labels, (1.0, 1.0))


def volumes(folder: Path, most: int) -> Iterator[Case]:
    for file in sorted((folder / "imagesTr").iterdir())[:most]:
        image, label = (
            nibabel.as_closest_canonical(nibabel.load(each)) for each in (file, folder / "labelsTr" / file.name)
        )
        values, found = (np.asarray(each.dataobj).transpose(2, 1, 0) for each in (image, label))
        low, high = np.percentile(values, [0.5, 99.5])
        pixels = np.rint(((values.astype(float) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
        names, counts = np.unique(found[found > 0], return_counts=True)
        labels = np.zeros(found.shape, np.uint8)
        for number, name in enumerate(names[np.argsort(-counts)][:MOST_LABELS], start=1):
            labels[found == name] = number
        yield Case(folder.name, pixels, labels, image.header.get_zooms()[2::-1])


def boxes(case: Case) -> NDArray[np.int64] | list[dict[str, int]]:
    """(N, 4) of a picture; of a volume dictionaries, as the organizers' get_boxes.py makes them."""
    masks = [case.labels == label for label in range(1, case.labels.max() + 1)]
    if case.labels.ndim == 2:
        return np.stack([box_from_mask(mask).ravel().astype(np.int64) for mask in masks])
    found = []
    for mask in masks:
        z = np.where(mask)[0]
        middle = z[len(z) // 2]
        corners = box_from_mask(mask[middle]).ravel().astype(np.int64)
        names = ("z_mid_x_min", "z_mid_y_min", "z_mid_x_max", "z_mid_y_max")
        found.append({"z_min": z.min(), "z_max": z.max(), "z_mid": middle} | dict(zip(names, corners, strict=True)))
    return found


def ask(case: Case, folder: Path, command: list[str], **prompts: object) -> tuple[NDArray[np.uint8], Answer]:
    """The labels of one process."""
    np.savez_compressed(folder / "case.npz", imgs=case.images, spacing=case.spacing, **prompts)
    program = [sys.executable, "-m", "monai_kdsam", "predict-npz", str(folder / "case.npz"), str(folder / "out")]
    launched = [sys.executable, "-S", "-c", LAUNCH, *program, *command]
    done = subprocess.run(launched, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    with np.load(folder / "out" / "case.npz") as written:
        labels = written["segs"]
    return labels, Answer(*scores(labels, case), *json.loads(done.stdout))


def scores(found: NDArray[np.uint8], case: Case) -> tuple[float, float]:
    """DSC and NSD."""
    dsc, nsd = [], []
    for label in range(1, case.labels.max() + 1):
        mask, reference = found == label, case.labels == label
        dsc.append(2 * (mask & reference).sum() / (mask.sum() + reference.sum()))
        one, other = (torch.from_numpy(each)[None, None].float() for each in (mask, reference))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            surface = compute_surface_dice(
                one, other, [2.0], include_background=True, spacing=list(map(float, case.spacing)), use_subvoxels=True
            )
        nsd.append(float(surface) if mask.any() else 0.0)
    return float(np.mean(dsc)), float(np.mean(nsd))


def session(case: Case, folder: Path, command: list[str]) -> list[Answer]:
    """The answers to boxes and to `CLICKS` clicks more."""
    asked = {"boxes": boxes(case)}
    clicks = [{"fg": [], "bg": []} for _ in asked["boxes"]]
    labels, answer = ask(case, folder, command, **asked)
    answers = [answer]
    for _ in range(CLICKS):
        for label, row in enumerate(clicks, start=1):
            errors, count = ndimage.label((labels == label) != (case.labels == label), np.ones((3, 3, 3)))
            if count:
                largest = errors == 1 + np.argmax(np.bincount(errors.ravel())[1:])
                depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
                place = np.unravel_index(np.argmax(depth), depth.shape)
                row["fg" if case.labels[place] == label else "bg"].append(list(place))
        labels, answer = ask(case, folder, command, **asked, clicks=clicks, prev_pred=labels)
        answers.append(answer)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("export", help="folder that `export` wrote")
    parser.add_argument("--pictures", type=Path, metavar="DATALIST")
    parser.add_argument("--volumes", type=Path, nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--most", type=int, nargs=2, default=[8, 3], metavar=("PICTURES", "VOLUMES"))
    parser.add_argument("--threads", default="2")
    arguments = parser.parse_args()
    command = ["--model", arguments.export, "--threads", arguments.threads]
    rows: dict[str, list[Answer]] = {}
    sessions: dict[str, list[list[Answer]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in generated():
            rows[case.kind] = [ask(case, folder, command, boxes=boxes(case))[1] for _ in range(3)]
        for case in pictures(arguments.pictures, arguments.most[0]) if arguments.pictures else ():
            rows.setdefault(case.kind, []).append(ask(case, folder, command, boxes=boxes(case))[1])
        for case in (case for data in arguments.volumes for case in volumes(data, arguments.most[1])):
            sessions.setdefault(case.kind, []).append(session(case, folder, command))
    for kind, answers in sessions.items():
        rows[kind] = [first for first, *_ in answers]
    write_result("challenge", cases=cases_table(rows), clicks=clicks_table(sessions))


def cases_table(rows: dict[str, list[Answer]]) -> dict[str, list]:
    columns = ["cases", "number", "DSC", "NSD", "seconds, median", "processor seconds", "MiB, most"]
    found = []
    for kind, answers in rows.items():
        quality = ["-", "-"] if "generated" in kind else [f"{np.mean([a[n] for a in answers]):.3f}" for n in (0, 1)]
        time = [f"{np.median([a[n] for a in answers]):.2f}" for n in (2, 3)]
        found.append([kind, len(answers), *quality, *time, f"{max(a.mebibytes for a in answers):.0f}"])
    return table(columns, found)


def clicks_table(sessions: dict[str, list[list[Answer]]]) -> dict[str, list]:
    columns = ["volumes", "number", "DSC, box", "DSC, 5 clicks", "NSD, 5 clicks", "DSC AUC", "NSD AUC", "seconds, most"]
    found = []
    for kind, answers in sessions.items():
        scored = np.array([[each[:3] for each in one] for one in answers])
        auc = integrate.trapezoid(scored[:, 1:, :2], axis=1).mean(axis=0)
        values = [*scored[:, [0, -1], 0].mean(axis=0), scored[:, -1, 1].mean(), *auc]
        found.append([kind, len(answers), *(f"{value:.3f}" for value in values), f"{scored[..., 2].max():.2f}"])
    return table(columns, found)


if __name__ == "__main__":
    main()
