# SPDX-License-Identifier: Apache-2.0
"""Where a run writes: one run of a phase at a time, a folder for each, and no weights replaced unasked."""

from __future__ import annotations

import logging
from pathlib import Path

import ignite.distributed as idist
from filelock import FileLock, Timeout

from monai_kdsam.errors import ExistingFileError, UserFileError
from monai_kdsam.files import check_writable
from monai_kdsam.weights.sidecar import is_shipped

__all__ = ["check_checkpoint", "lock_phase", "run_folder"]

logger = logging.getLogger(__name__)
# Seconds. The workers of a run that was killed notice it within 5, and hold its lock until then.
PATIENCE = 10.0
_held: dict[Path, FileLock] = {}


def run_folder(output_dir: str | Path, phase: str, resume: bool = False) -> str:
    """The folder of a run's merged config and TensorBoard events: runs/train_001, the next one 002, and so on.

    A run that goes on where one broke off has that one's folder.
    """
    runs = Path(output_dir) / "runs"
    numbers = [int(text) for path in runs.glob(f"{phase}_*") if (text := path.name[len(phase) + 1 :]).isdigit()]
    number = max(numbers, default=0) + (not (resume and numbers))
    return str(runs / f"{phase}_{number:03d}")


def lock_phase(output_dir: Path, phase: str) -> None:
    """Keep other processes from running the same phase in a folder, until this one ends.

    Raises:
        UserFileError: when another process runs it there.
    """
    path = (output_dir / f".{phase}.lock").resolve()
    if path in _held and path.exists():
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise UserFileError(
            f"Another run of the phase {phase} is writing to `output_dir` {output_dir}. "
            "Wait for its end, or name another `output_dir`."
        ) from error
    except NotImplementedError:
        logger.warning("The file system of %s has no locks: start no second run of %s there.", output_dir, phase)
    _held[path] = lock


def check_checkpoint(path: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Before the first epoch: the best weights can be written, and replace none of an earlier run unasked.

    Those that came with the package are no run's.

    Raises:
        FileExistsError: when there are weights already.
        OSError: when the folder cannot be written.
    """
    if idist.get_rank() > 0:
        return
    if Path(path).exists() and not (resume or overwrite or is_shipped(path)):
        raise ExistingFileError(
            f"{path} has the weights of an earlier run. Go on with that run by `--resume True`, replace its weights by "
            "`--overwrite True`, or name another `best_checkpoint`."
        )
    check_writable(Path(path).parent, "ckpt_dir")
