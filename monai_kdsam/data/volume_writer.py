# SPDX-License-Identifier: Apache-2.0
"""Masks of volumes as files, by MONAI's writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.data import ImageWriter, resolve_writer

from monai_kdsam.files import ROOM, replacing

__all__ = ["volume_writer"]


def volume_writer(output_ext: str) -> type[ImageWriter]:
    """MONAI's writer for an extension; a file is written whole or not at all."""
    stock = resolve_writer(output_ext)[0]

    class WholeFile(stock):  # type: ignore[misc, valid-type]
        def write(self, filename: Any, verbose: bool = True, **settings: Any) -> None:
            with replacing(Path(filename), ROOM) as unfinished:
                named = unfinished.with_name(f"{unfinished.name}{output_ext}")  # whose end says the format
                try:
                    super().write(named, verbose=verbose, **settings)
                    named.rename(unfinished)
                finally:
                    named.unlink(missing_ok=True)

    return WholeFile
