# SPDX-License-Identifier: Apache-2.0
"""What a bundle's run begins with; its configs call these functions."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import platform
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai.bundle
import torch
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

import monai_kdsam
from monai_kdsam.bundles import make_importable
from monai_kdsam.data.archive import masks_made_by
from monai_kdsam.errors import MissingFileError, UserError, report_error, report_thread_error
from monai_kdsam.files import check_writable, write_text
from monai_kdsam.processes import check_launch, shard_suffix
from monai_kdsam.run_folder import check_checkpoint, lock_phase, run_folder
from monai_kdsam.settings import check_settings

__all__ = ["RUN_OPTIONS", "begin_run", "check_checkpoint", "config_checksum", "made_by", "run_folder"]

# Arguments of MONAI's own, beside which a run takes settings of the config.
RUN_OPTIONS = inspect.signature(monai.bundle.run).parameters.keys() - {"override"}
# What a run evaluates, by the option that names another.
ROOTS = {"init_id": "initialize", "run_id": "run", "final_id": "finalize"}

logger = logging.getLogger(__name__)


def begin_run(
    seed: int, output_dir: str, bundle_root: str, run_dir: str | None = None, share: tuple[int, int] | None = None
) -> None:
    """The first thing that a bundle's run does: check the config, log what is run, prepare the output folder.

    Of several processes only the first one writes.

    Args:
        seed: to log.
        output_dir: the output folder.
        bundle_root: the bundle's folder.
        run_dir: where the merged config is kept, by default in the output folder.
        share: of the work, see `own_shard`, where processes need not know of each other: each runs the phase.

    Raises:
        ValueError: when a setting is wrong, see `check_settings`, or the config is for one of several processes.
        OSError: when the output folder cannot be written, or another process runs the same phase there.
    """
    typed = _typed()
    if typed is not None:
        sys.excepthook, threading.excepthook = report_error, report_thread_error
    if share is None:
        check_launch()
    if _up_the_stack("net_override", dict) is not None:
        # `monai.bundle.load` builds the network and runs nothing, in whatever folder; `bundle_root` is not the bundle.
        make_importable(Path(_up_the_stack("config_file", str)).parent.parent)
        return
    if not Path(bundle_root, "configs").is_dir():
        raise MissingFileError(
            f"Expected `bundle_root` to be a bundle's folder, with `configs` in it, but {Path(bundle_root).absolute()} "
            "is none. Give the folder by --bundle_root, or run the command in it."
        )
    make_importable(bundle_root)
    parser = _up_the_stack("self", ConfigParser)
    config: Any = None if parser is None else parser.config
    if parser is not None:
        roots = tuple((typed or {}).get(option, name) for option, name in ROOTS.items())
        settings = {name: word for name, word in (typed or {}).items() if name not in RUN_OPTIONS}
        check_settings(config, Path(bundle_root) / "configs", typed=settings, roots=roots, macros=_macros(settings))
    if idist.get_rank() > 0:
        return
    folder = Path(output_dir)
    check_writable(folder, "output_dir")
    if config is not None:
        lock_phase(folder, str(config.get("phase", "run")) + shard_suffix(share or (0, 1)))
    versions = {"monai_kdsam": monai_kdsam, "monai": monai, "torch": torch}
    listed = ", ".join(f"{name} {module.__version__}" for name, module in versions.items())
    logger.info("Seed %d; %s, Python %s.", seed, listed, platform.python_version())
    threads = f"{torch.get_num_threads()} threads of PyTorch on {os.cpu_count()} CPUs"
    logger.info("%s; beside other work OMP_NUM_THREADS=1, or few, is faster.", threads)
    if config is not None:
        write_text(Path(run_dir or folder) / "config.json", json.dumps(config, indent=4, default=str))


def _up_the_stack(name: str, kind: type | tuple[type, ...]) -> Any:
    """The nearest variable of a name and a kind in the call stack, None where there is none.

    MONAI gives an expression what it refers to, and nothing refers to the config as a whole, or to the files that it is
    from. So they are looked for in the call stack; this is the only function that does.
    """
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get(name), kind):
        frame = frame.f_back
    return None if frame is None else frame.f_locals[name]


def _macros(typed: Mapping[str, str]) -> set[str]:
    """Keys that a `%key` names in the running config's files, or on the command line."""
    files = ensure_tuple(_up_the_stack("config_file", (str, Path, list, tuple)) or ())
    texts = [Path(file).read_text(encoding="utf-8") for file in files if Path(file).is_file()]
    return set(re.findall(r"%(\w+)", " ".join([*texts, *typed.values()])))


def _typed() -> dict[str, str] | None:
    """Options and their values where this program is `python -m monai.bundle`, else None."""
    if Path(sys.argv[0]).parts[-2:] != ("bundle", "__main__.py"):
        return None
    pairs = [
        (*word[2:].split("=", 1), following)
        for word, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True)
        if word.startswith("--")
    ]
    return {name.replace("-", "_"): value for name, value, *_ in pairs}


def made_by(checkpoint: str) -> dict[str, str]:
    """Checksums of what the running config's masks depend on, see `masks_made_by`."""
    parser = _up_the_stack("self", ConfigParser)
    return masks_made_by(checkpoint, {} if parser is None else parser.config)


def config_checksum(*sections: str) -> str:
    """Checksum of what sections of the config say whose expression calls this, for results that depend on them.

    Raises:
        UserError: when no config is being evaluated: a checksum of nothing would accept whatever was kept.
    """
    parser = _up_the_stack("self", ConfigParser)
    if parser is None:
        raise UserError("Expected `config_checksum` to be called by an expression of a config, got no config.")
    config: Any = parser.config
    chosen = {name: config.get(name) for name in sections}
    return hashlib.blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=16).hexdigest()
