# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from monai_kdsam.data import format_name


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("1.2.840.5.7", "1.2.840.5.7_mask.png"),
        ("a.png", "a_mask.png"),
        ("scan.nii.gz", "scan_mask.png"),
        ("cine#frame3.dcm", "cine#frame3_mask.png"),
        ("1.2.840#frame0.5", "1.2.840#frame0.5_mask.png"),
    ],
)
def test_monais_writer_cuts_off_suffixes_and_nothing_else(tmp_path, image, mask):
    save = SaveImage(
        tmp_path,
        output_ext=".png",
        output_postfix="mask",
        separate_folder=False,
        data_root_dir="in",
        output_name_formatter=format_name,
        print_log=False,
    )
    save(MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": f"in/deep/{image}"}))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [mask]
