# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

from monai_kdsam import run_folder as module
from monai_kdsam.run_folder import check_checkpoint, lock_phase, run_folder

HOLD = "import sys; from pathlib import Path; from monai_kdsam.run_folder import lock_phase; "
HOLD += "lock_phase(Path(sys.argv[1]), 'train'); print('held', flush=True); sys.stdin.read()"


def test_each_run_of_a_phase_has_its_folder_and_a_resumed_one_that_of_the_run_it_goes_on_with(tmp_path) -> None:
    names = []
    for phase, resume in (("train", True), ("train", False), ("adapt", False), ("train", True), ("train", False)):
        folder = tmp_path / run_folder(tmp_path, phase, resume)
        folder.mkdir(parents=True, exist_ok=True)
        names.append(folder.relative_to(tmp_path / "runs").as_posix())
    assert names == ["train_001", "train_002", "adapt_001", "train_002", "train_003"]


def test_another_process_may_not_run_the_same_phase_in_a_folder_until_the_first_one_ends(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=r"Another run of the phase train is writing to `output_dir`"):
            lock_phase(tmp_path, "train")
        lock_phase(tmp_path, "evaluate")
    finally:
        other.kill()
        other.communicate()
    for _ in range(2):
        lock_phase(tmp_path, "train")


def test_weights_of_an_earlier_run_are_replaced_only_where_asked(tmp_path) -> None:
    path = tmp_path / "models" / "teacher.pt"
    check_checkpoint(path, resume=False, overwrite=False)
    assert list(path.parent.iterdir()) == []
    path.write_text("Dice 0.364")
    with pytest.raises(FileExistsError, match=r"teacher\.pt has the weights of an earlier run\..*--overwrite True"):
        check_checkpoint(path, resume=False, overwrite=False)
    check_checkpoint(path, resume=True, overwrite=False)
    check_checkpoint(path, resume=False, overwrite=True)


def test_a_folder_of_weights_that_cannot_be_written_is_found_before_the_first_epoch(tmp_path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"Cannot write to `ckpt_dir` .*models: "):
        check_checkpoint(tmp_path / "models" / "model.pt", resume=False, overwrite=False)
