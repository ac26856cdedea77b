# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pydicom
import pytest
from pydicom.data import get_testdata_file

from monai_kdsam.dicom.header import complete_header


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_headers_get_what_a_segmentation_copies():
    old = pydicom.dcmread(get_testdata_file("SC_rgb_rle.dcm", download=False))
    old.StudyDate, old.StudyTime = "1994.11.05", "11:20:00"
    del old.PatientID
    complete_header(old)
    assert (old.StudyDate, old.StudyTime, old.PatientID) == ("19941105", "112000", "")
