# SPDX-License-Identifier: Apache-2.0
"""The CVPR challenges' way of asking: .npz files in, .npz files with `segs` out, without torch."""

from __future__ import annotations

import io
import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.files import ROOM, check_writable, replacing
from monai_kdsam.runtime import Predictor
from monai_kdsam.runtime.npz_case import Case, read_case

__all__ = ["label_case", "predict_npz"]

_AT_ONCE = 2**22  # pixels of all masks at once, for the memory's sake
Labels = NDArray[np.uint8] | NDArray[np.uint16]


def predict_npz(cases: str | Path, out: str | Path, predictor: Predictor, *, threads: int = 1) -> str:
    """Segment a case, or all cases of a folder, and tell about each in a line; what is there already is replaced.

    Args:
        cases: an .npz file or a folder of them, see `read_case`.
        out: folder to write to: of each case a file of the same name with `segs`, of the shape of the picture or the
            volume without its colors: 0, and the number of the box or click from 1 on.
        predictor: what segments.
        threads: see `label_case`.

    Returns:
        The last line.

    Raises:
        FileNotFoundError: when there is no case.
        ValueError: on less than one thread, and when some cases cannot be segmented, after all others were.
    """
    source, target = Path(cases), Path(out)
    if threads < 1:
        raise UserError(f"Expected `threads` to be at least 1, got {threads}.")
    files = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    if not files:
        raise MissingFileError(f"Expected .npz files in {source}, got none.")
    if target.resolve() == files[0].parent.resolve():
        raise UserError(f"Expected to write to another folder than that of the cases, got {out}.")
    check_writable(target, "OUT")
    failed = []
    for file in files:
        start = time.perf_counter()
        try:
            case = read_case(file)
            labels = label_case(case, predictor, threads=threads)
        except UserError as error:
            failed.append(str(error) if str(file) in str(error) else f"{file}: {error}")
            continue
        content = io.BytesIO()
        np.savez_compressed(content, segs=labels)
        with replacing(target / file.name, ROOM) as unfinished:
            unfinished.write_bytes(content.getvalue())
        told = f"{file.name}: {len(case.targets)} labels in {time.perf_counter() - start:.2f} s"
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()
    if failed:
        raise UserError(f"{len(failed)} of {len(files)} cases were not segmented:\n" + "\n".join(failed))
    return f"Segmented {len(files)} case{'s' * (len(files) != 1)}; all are in {out}."


def label_case(case: Case, predictor: Predictor, *, threads: int = 1) -> Labels:
    """The labels of a picture or a volume; where two overlap, the later one stays, as in the organizers' code.

    Args:
        case: of `read_case`.
        predictor: what segments; one that computes in one thread, where there are several here.
        threads: how many labels, or directions through a volume, are worked at at once. One network in several
            threads is hardly faster than in one, and waits for them meanwhile.

    Returns:
        `case.shape`, uint8, or uint16 of more than 255 labels.
    """
    labels = np.zeros(case.shape, dtype=np.uint8 if len(case.targets) < 256 else np.uint16)
    if not case.targets:
        return labels
    with ThreadPoolExecutor(threads) as pool:
        if case.is_volume:
            # With SciPy, which takes longer to import than a picture to segment.
            from monai_kdsam.runtime.volume import SlicePredictor, segment_target

            slices = SlicePredictor(case.images, predictor)
            each = partial(segment_target, slices, threads=min(2, -(-threads // len(case.targets))))
            for label, masks in enumerate(pool.map(each, case.targets), start=1):
                for number, mask in masks.items():
                    labels[number][mask] = label
            return labels
        image = predictor.encode(case.images, whole=not predictor.close_up)
        boxes = np.stack([target.box for target in case.targets if target.box is not None])
        at_once = max(threads, _AT_ONCE // labels.size)
        for first in range(0, len(boxes), at_once):
            some = boxes[first : first + at_once]
            parts = np.array_split(some, min(threads, len(some)))
            answers = pool.map(lambda part: predictor.predict(box=part, image=image)[0] > 0, parts)
            for label, mask in enumerate(itertools.chain.from_iterable(answers), start=first + 1):
                labels[mask] = label
    return labels
