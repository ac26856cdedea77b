# SPDX-License-Identifier: Apache-2.0
"""A student that has seen a few pictures, so that its masks mean something, in a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from PIL import Image

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.export.parity import draw_prompts
from monai_kdsam.inferers import BundlePredictor
from monai_kdsam.networks import build_student

SIZE = 128
STEPS = 100


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """Folder of a bundle with weights; pictures lie in `phantoms/images` beside it."""
    folder = tmp_path_factory.mktemp("export")
    bundle = copy_bundle(
        folder, settings={"backbone": "resnet18", "image_size": SIZE, "prompt_map": False, "fine_features": False}
    )
    write_phantoms(folder / "phantoms", per_kind=10, size=160)
    torch.manual_seed(0)
    network = build_student("resnet18", image_size=SIZE)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    fit(network, *read(bundle, folder / "phantoms"))
    torch.save(network.eval().state_dict(), bundle / "models" / "model.pt")
    return bundle


def read(bundle: Path, phantoms: Path):
    """Images (N, 3, S, S), masks (N, 1, S, S), points and labels in the network's frame."""
    preprocess = BundlePredictor(bundle).preprocessing
    images, masks, prompts = [], [], []
    for file in sorted((phantoms / "images").iterdir()):
        images.append(preprocess({"image": str(file)})["image"].as_tensor())
        mask = torch.from_numpy(np.array(Image.open(phantoms / "masks" / file.name)) > 0)[None, None].float()
        scale = SIZE / max(mask.shape[-2:])
        mask = F.interpolate(mask, size=[round(side * scale) for side in mask.shape[-2:]])[0]
        masks.append(F.pad(mask, (0, SIZE - mask.shape[2], 0, SIZE - mask.shape[1])))
        prompts.append(draw_prompts(masks[-1][0].numpy(), len(masks)))
    points, labels = (torch.from_numpy(np.stack(part)) for part in zip(*prompts, strict=True))
    return torch.stack(images), torch.stack(masks), points, labels


def fit(network, images, masks, points, labels):
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=1e-3)
    loss = DiceCELoss(sigmoid=True)
    for _ in range(STEPS):
        chosen = torch.randperm(len(images))[:6]
        kind = torch.randint(points.shape[1], (1,))
        logits = network(images[chosen], points[chosen][:, kind], labels[chosen][:, kind])
        optimizer.zero_grad()
        loss(logits, masks[chosen]).backward()
        optimizer.step()
