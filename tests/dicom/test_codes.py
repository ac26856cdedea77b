# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from monai_kdsam.dicom.codes import SEGMENTS, segment_named

pytest.importorskip("pydicom")


@pytest.mark.parametrize("name", SEGMENTS)
def test_every_name_has_codes(name):
    segment = segment_named(name)
    assert segment.label == name
    assert {segment.category.scheme_designator, segment.kind.scheme_designator} == {"SCT"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wart", "Expected `--segment` among lesion, .*, or NAME=CATEGORY/TYPE, got 'wart'"),
        ("wart=Wart", "NAME=CATEGORY/TYPE"),
        ("=AnatomicalStructure/Head", "NAME of 1 to 64 characters"),
        ("x" * 65 + "=AnatomicalStructure/Head", "NAME of 1 to 64 characters"),
        ("head=Anatomy/Head", "CATEGORY codes in `--segment`, got 'Anatomy'. Near: .*AnatomicalStructure"),
        ("head=AnatomicalStructure/Prostata", "TYPE codes in `--segment`, got 'Prostata'. Near: Prostate"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_known(text, message):
    with pytest.raises(ValueError, match=message):
        segment_named(text)
