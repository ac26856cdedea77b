# SPDX-License-Identifier: Apache-2.0
"""The runtime's predictor on the student that ships, beside the bundle's own."""

from __future__ import annotations

import numpy as np

from monai_kdsam.__main__ import main
from monai_kdsam.bundles import shipped_bundle
from monai_kdsam.data.phantoms import make_phantom
from monai_kdsam.export.unexported import UnexportedPredictor
from monai_kdsam.inferers import BundlePredictor


def test_its_masks_are_the_bundle_s_and_predict_npz_asks_it_where_there_is_no_export(tmp_path, capsys):
    image, reference = make_phantom("polyp", size=200, seed=0)
    rows, columns = np.nonzero(reference)
    box = [columns.min(), rows.min(), columns.max(), rows.max()]
    predictor = UnexportedPredictor(shipped_bundle(), threads=1)
    predictor.set_image(image)
    mask, iou, _ = predictor.predict(box=box)
    expected = BundlePredictor().predict(image, roi=box)
    assert (mask != expected.mask).mean() < 0.001
    assert abs(iou - expected.iou) < 0.01
    np.savez_compressed(tmp_path / "case.npz", imgs=image, boxes=[box])
    assert main(["predict-npz", str(tmp_path / "case.npz"), str(tmp_path / "out"), "--threads", "1"]) == 0
    assert np.array_equal(np.load(tmp_path / "out" / "case.npz")["segs"], mask)
    assert "Segmented 1 case" in capsys.readouterr().out
