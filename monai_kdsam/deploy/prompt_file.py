# SPDX-License-Identifier: Apache-2.0
"""Prompts for DICOM images, in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_kdsam.errors import MissingFileError, UserError
from monai_kdsam.transforms.host_prompts import points_from_request

__all__ = ["Prompts", "Request", "Target", "read_prompts"]

SERIES, INSTANCE = "series_instance_uid", "sop_instance_uid"
KEYS = (SERIES, INSTANCE, "frame", "points", "labels", "box")

# (UID, frame): a series or instance has no frame.
Target = tuple[str, "int | None"]
# As `points_from_request` reads them.
Request = dict[Hashable, Any]


@dataclass(frozen=True)
class Prompts:
    """Prompts by what they are for.

    Args:
        path: of the file, for messages.
        requests: from (UID, frame) to `foreground`, `background` and `roi` as `points_from_request` reads them.
    """

    path: Path
    requests: Mapping[Target, Request]

    def find(self, series: str, instance: str, frame: int, size: tuple[int, int]) -> tuple[Target, Request] | None:
        """The prompt of one frame: its own, or else its instance's, or else its series', with what it is for.

        Args:
            series: its Series Instance UID.
            instance: its SOP Instance UID.
            frame: its number, from 1.
            size: (columns, rows) of the image.

        Raises:
            ValueError: when the prompt is not on the image.
        """
        for target in ((instance, frame), (instance, None), (series, None)):
            request = self.requests.get(target)
            if request is not None:
                try:
                    points_from_request(request, size)
                except ValueError as error:
                    raise UserError(f"{self.path}, prompt for {_text(target)}: {_in_our_words(str(error))}") from error
                return target, request
        return None

    def check_all_used(self, used: set[Target]) -> None:
        """Raise ValueError when a prompt is for an image that is not there."""
        for target in self.requests:
            if target not in used:
                raise UserError(f"{self.path} has a prompt for {_text(target)}, which is not among the images.")


def _text(target: Target) -> str:
    uid, frame = target
    return uid if frame is None else f"frame {frame} of {uid}"


def _in_our_words(message: str) -> str:
    """The message of a host's request, with the names that this file has for its parts."""
    for host, ours in (("`foreground`", "`points`"), ("`background`", "`points`"), ("`roi`", "`box`")):
        message = message.replace(host, ours)
    return message


def read_prompts(path: str | Path) -> Prompts:
    """Read a file of prompts; docs/howto/deploy.md describes it.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no JSON or of another form, naming the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"Expected `--prompts` to be a JSON file, but there is none at {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the decoding of the text, too
        raise UserError(f"Expected `--prompts` {path} to be JSON: {error}.") from error
    entries = content.get("prompts") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f'Expected {path} to be {{"prompts": [...]}} with at least one entry, and no other key.')
    requests: dict[Target, Request] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            target, request = _read_entry(entry)
            if target in requests:
                raise UserError(f"there is a prompt for {_text(target)} already")
        except ValueError as error:
            raise UserError(f"{path}, prompt {number}: {error}.") from error
        requests[target] = request
    return Prompts(path, requests)


def _read_entry(entry: Any) -> tuple[Target, Request]:
    if not isinstance(entry, dict):
        raise UserError(f"expected an object, got {entry!r}")
    unknown = sorted(set(entry) - set(KEYS))
    if unknown:
        raise UserError(f"expected keys among {', '.join(KEYS)}, got {unknown[0]!r}")
    points, labels, box = (entry.get(key) or [] for key in ("points", "labels", "box"))
    if not points and not box:
        raise UserError("expected `points`, `box` or both")
    for name, value in (("points", points), ("labels", labels), ("box", box)):
        if not isinstance(value, list):
            raise UserError(f"expected `{name}` to be a list, got {value!r}")
    if any(not _is_numbers(point, 2) for point in points):
        raise UserError(f"expected `points` to be [[x, y], ...], got {points}")
    if len(labels) != len(points) or any(label not in (0, 1) or isinstance(label, bool) for label in labels):
        raise UserError(f"expected in `labels` a 1 or 0 for each of {len(points)} `points`, got {labels}")
    if box and not _is_numbers(box, 4):
        raise UserError(f"expected `box` to be [x1, y1, x2, y2], got {box}")
    marked = list(zip(points, labels, strict=True))
    request: Request = {
        "foreground": [point for point, label in marked if label == 1],
        "background": [point for point, label in marked if label == 0],
        "roi": box or None,
    }
    return _read_target(entry), request


def _read_target(entry: dict[str, Any]) -> Target:
    uids = [entry[key] for key in (SERIES, INSTANCE) if key in entry]
    if len(uids) != 1 or not isinstance(uids[0], str) or not uids[0]:
        raise UserError(f"expected either `{INSTANCE}` or `{SERIES}`, a text")
    frame = entry.get("frame")
    if frame is None:
        return uids[0], None
    if INSTANCE not in entry or not isinstance(frame, int) or isinstance(frame, bool) or frame < 1:
        raise UserError(f"expected `frame` to be a whole number from 1, beside `{INSTANCE}`, got {frame!r}")
    return uids[0], frame


def _is_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value)
    )
