# SPDX-License-Identifier: Apache-2.0
"""Parts of the benchmarks that a run of hours should not be the first to try."""

import importlib
import sys

import pytest
import segment_anything
import torch
from growth import rows_of
from peer_models import PEERS, BoxDecoder, build, importing
from torch import nn
from trunks import front

# A checkout that has a package of a name that is installed, and imports another that is not.
ENCODER = """
import no_such_package.layers
from no_such_package import Missing
from torch import nn
class Encoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        nn.init.zeros_(self[1].weight)
    def train(self, mode=True):
        super().train(mode)  # and gives nothing back, as EdgeSAM's
"""


def stand_in(size):
    from segment_anything.encoder import Encoder

    return Encoder(), nn.Identity()


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "segment_anything").mkdir()
    (tmp_path / "segment_anything" / "__init__.py").touch()
    (tmp_path / "segment_anything" / "encoder.py").write_text(ENCODER, encoding="utf-8")
    return tmp_path


def test_a_peer_is_built_of_its_own_checkout_which_is_then_forgotten(checkout, monkeypatch):
    path = list(sys.path)
    monkeypatch.setitem(PEERS, "stand_in", type(PEERS["nanosam"])("", "", "", 32, stand_in, (), ("no_such_package",)))
    encoder, _ = build("stand_in", 32, {"stand_in": checkout})
    assert not encoder.training
    # No norm is left at zero, before which a runtime could leave all out.
    assert encoder(torch.ones(1, 3, 8, 8)).abs().sum() > 0
    assert importlib.import_module("segment_anything") is segment_anything
    assert "no_such_package" not in sys.modules
    assert "segment_anything.encoder" not in sys.modules
    assert sys.path == path


def test_what_a_peer_needs_and_is_missing_is_told(checkout):
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), importing(checkout, ()):
        importlib.import_module("segment_anything.encoder")
    assert importlib.import_module("segment_anything") is segment_anything


def test_a_peers_decoder_gives_one_mask_of_a_box():
    sam = segment_anything.modeling
    transformer = sam.TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=8)
    parts = sam.PromptEncoder(32, (4, 4), (64, 64), 4), sam.MaskDecoder(transformer_dim=32, transformer=transformer)
    masks, iou = BoxDecoder(*parts)(torch.zeros(1, 32, 4, 4), torch.tensor([[8.0, 8.0, 40.0, 30.0]]))
    assert (masks.shape, iou.shape) == ((1, 1, 16, 16), (1, 1))


def test_the_front_is_what_nothing_beats_in_both():
    points = {"slow": (9.0, 0.9), "fast": (1.0, 0.7), "beaten": (2.0, 0.6), "level": (2.0, 0.7)}
    assert front(points) == {"slow", "fast"}


def test_a_further_picture_costs_what_it_adds_to_the_start():
    points = [{"embed": 2.0, "cached": 1.0, "live": 3.0}, {"embed": 4.0, "cached": 1.2, "live": 9.0}]
    columns, rows = rows_of("distill", [10, 20], points)
    assert [len(row) for row in rows] == [len(columns)] * 2
    assert rows[1] == ["20", "200.0", "60.0", "450.0", "200.0", "20.0", "600.0"]
