# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from monai_kdsam.networks import build_teacher, load_weights
from monai_kdsam.networks.kdsam import KDSAM
from monai_kdsam.networks.teacher import build_vit
from monai_kdsam.weights.sam_layout import fit_positions, to_sam_layout
from monai_kdsam.weights.state_dict import read_state_dict


def teacher(kind: str = "vit_micro", image_size: int = 64, seed: int = 0) -> KDSAM:
    """Weights that differ from seed to seed, position tables included (SAM starts them at zero)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_teacher(kind, image_size=image_size)
        for parameter in network.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return network.eval()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def in_parallel(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {"model": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize("wrap", [dict, in_parallel], ids=["raw", "wrapped"])
def test_a_checkpoint_is_loaded_whole(tmp_path, wrap) -> None:
    source, other = teacher(seed=0), teacher(seed=1)
    torch.save(wrap(source.state_dict()), tmp_path / "sam.pt")
    assert not equal(source.state_dict(), other.state_dict())
    assert load_weights(other, tmp_path / "sam.pt") is other
    assert equal(source.state_dict(), other.state_dict())
    built = build_teacher("vit_micro", image_size=64, checkpoint=tmp_path / "sam.pt")
    assert equal(built.state_dict(), source.state_dict())


def test_a_checkpoint_of_another_size_is_named_and_nothing_of_it_is_loaded(tmp_path) -> None:
    torch.save(teacher("vit_micro").state_dict(), tmp_path / "micro.pt")
    network = teacher("vit_tiny", seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    text = r"micro\.pt are of another architecture \(it holds a ViT of width 64\): \d+ missing \(image_.*, \.\.\.\); "
    with pytest.raises(ValueError, match=text):
        load_weights(network, tmp_path / "micro.pt")
    assert equal(network.state_dict(), before)


@pytest.mark.parametrize(("width", "name"), [(768, "vit_b"), (1024, "vit_l"), (1280, "vit_h")])
def test_an_official_size_is_called_by_its_name(tmp_path, width, name) -> None:
    torch.save({"image_encoder.patch_embed.proj.weight": torch.zeros(width, 3, 16, 16)}, tmp_path / "sam.pt")
    with pytest.raises(ValueError, match=rf"\(it holds a {name} of width {width}\)"):
        load_weights(teacher(), tmp_path / "sam.pt")


@pytest.mark.parametrize("change", ["name", "shape"])
def test_an_entry_that_does_not_fit_is_named(tmp_path, change) -> None:
    state, entry = teacher().state_dict(), "mask_decoder.iou_token.weight"
    if change == "shape":
        state[entry] = torch.zeros(1, 128)
    else:
        state[entry.replace("iou", "iuo")] = state.pop(entry)
    text = {
        "name": rf"1 missing \({entry}\); 1 unexpected \(mask_decoder\.iuo_token\.weight\)",
        "shape": rf"1 of another shape \({entry} \(1, 128\), the network's is \(1, 256\)\)",
    }[change]
    torch.save(state, tmp_path / "sam.pt")
    with pytest.raises(ValueError, match=text):
        load_weights(teacher(), tmp_path / "sam.pt")


def test_entries_beyond_the_network_are_left_out_on_request(tmp_path) -> None:
    source = teacher()
    extra = {"mask_decoder.hf_token.weight": torch.ones(1), "image_encoder.blocks.0.adapter.weight": torch.ones(1)}
    torch.save(source.state_dict() | extra, tmp_path / "hq.pt")
    with pytest.raises(ValueError, match=r"2 unexpected \(mask_decoder\.hf_token\.weight, .*can be left out"):
        build_teacher("vit_micro", image_size=64, checkpoint=tmp_path / "hq.pt")
    given = {"image_size": 64, "checkpoint": tmp_path / "hq.pt", "leave_out": ["*.hf_*", "*.adapter.*"]}
    assert equal(build_teacher("vit_micro", **given).state_dict(), source.state_dict())
    with pytest.raises(ValueError, match=r"Expected `leave_out` to name entries of .*hq\.pt, got 'none\.\*'"):
        load_weights(source, tmp_path / "hq.pt", leave_out=["none.*"])


ADAPTER = {  # of SAM-Med2D's class Adapter_Layer, one in each block
    "norm.weight": (64,),
    "norm.bias": (64,),
    "channel.0.weight": (16, 64),
    "channel.2.weight": (64, 16),
    "spatial.0.weight": (64, 64, 3, 3),
    "spatial.2.weight": (64, 64, 4, 4),
}


def test_a_file_like_sam_med2ds_is_read_with_its_optimizer_and_its_adapters_are_named(tmp_path) -> None:
    source, image = teacher(image_size=64), torch.rand(1, 3, 64, 64)
    names = [f"image_encoder.blocks.{block}.Adapter.{entry}" for block in (0, 1) for entry in ADAPTER]
    adapters = {name: torch.ones(ADAPTER[name.partition(".Adapter.")[2]]) for name in names}
    optimizer = torch.optim.Adam(source.mask_decoder.parameters())
    source(image).sum().backward()
    optimizer.step()
    # As its train.py writes it: the optimizer as an object.
    torch.save({"model": source.state_dict() | adapters, "optimizer": optimizer}, tmp_path / "sam-med2d.pth")
    text = r"12 unexpected \(image_encoder\.blocks\.0\.Adapter\.norm.*12 are of adapters, \['\*Adapter\*'\]: without"
    with pytest.raises(ValueError, match=text):
        build_teacher("vit_micro", image_size=64, checkpoint=tmp_path / "sam-med2d.pth")
    given = {"image_size": 64, "checkpoint": tmp_path / "sam-med2d.pth", "leave_out": ["*Adapter*"]}
    assert equal(build_teacher("vit_micro", **given).state_dict(), source.state_dict())


def test_a_sam_2_is_named(tmp_path) -> None:
    torch.save({"model": {"image_encoder.trunk.pos_embed": torch.zeros(1)}}, tmp_path / "sam2.pt")
    with pytest.raises(ValueError, match=r"another architecture \(it holds a SAM 2"):
        load_weights(teacher(), tmp_path / "sam2.pt")


# --- transformers' layout


def renamed_as_transformers(name: str) -> str:
    """transformers' name of one of SAM's entries, written down from a saved `SamModel`."""
    for ours, theirs in (
        ("image_encoder.", "vision_encoder."),
        ("patch_embed.proj.", "patch_embed.projection."),
        ("vision_encoder.blocks.", "vision_encoder.layers."),
        ("neck.0.", "neck.conv1."),
        ("neck.1.", "neck.layer_norm1."),
        ("neck.2.", "neck.conv2."),
        ("neck.3.", "neck.layer_norm2."),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
        ("point_embeddings.", "point_embed."),
        ("mask_downscaling.0.", "mask_embed.conv1."),
        ("mask_downscaling.1.", "mask_embed.layer_norm1."),
        ("mask_downscaling.3.", "mask_embed.conv2."),
        ("mask_downscaling.4.", "mask_embed.layer_norm2."),
        ("mask_downscaling.6.", "mask_embed.conv3."),
        ("norm_final_attn.", "layer_norm_final_attn."),
        ("output_upscaling.0.", "upscale_conv1."),
        ("output_upscaling.1.", "upscale_layer_norm."),
        ("output_upscaling.3.", "upscale_conv2."),
        *((f".norm{k}.", f".layer_norm{k}.") for k in range(1, 5)),
    ):
        name = name.replace(ours, theirs)
    if "hypernetworks" in name or "iou_prediction_head" in name:
        for ours, theirs in ((".layers.0.", ".proj_in."), (".layers.1.", ".layers.0."), (".layers.2.", ".proj_out.")):
            name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("tied", [False, True], ids=["one name of the positions", "both"])
def test_the_layout_of_transformers_is_loaded_as_a_teacher(tmp_path, tied) -> None:
    source = teacher(seed=3)
    state = {renamed_as_transformers(name): value.contiguous() for name, value in source.state_dict().items()}
    if tied:
        state["prompt_encoder.shared_embedding.positional_embedding"] = state[
            "shared_image_embedding.positional_embedding"
        ].clone()
    save_file(state, tmp_path / "model.safetensors")
    built = build_teacher("vit_micro", image_size=64, checkpoint=tmp_path / "model.safetensors")
    assert equal(built.state_dict(), source.state_dict())


def saved_by_transformers(folder, **vision):
    """A small `transformers.SamModel` with weights at random, saved by itself."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which no extra installs")
    vision |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 256, "image_size": 64}
    model = transformers.SamModel(
        transformers.SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 64})
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def test_the_layout_of_transformers_gives_the_masks_of_transformers(tmp_path) -> None:
    other = saved_by_transformers(tmp_path, window_size=0, global_attn_indexes=[])
    built = build_teacher("vit_micro", image_size=64, checkpoint=tmp_path / "model.safetensors").eval()
    image, points = torch.randn(1, 3, 64, 64), torch.tensor([[[20.0, 30.0], [50.0, 8.0]]])
    with torch.no_grad():
        masks, iou = built.decode(built.encode(image), points, torch.tensor([[1, 0]]), multimask=True)
        expected = other(pixel_values=image, input_points=points[None], input_labels=torch.tensor([[[1, 0]]]))
    torch.testing.assert_close(built.encode(image), other.get_image_embeddings(image), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masks, expected.pred_masks[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, expected.iou_scores[0], atol=1e-4, rtol=1e-4)


def test_the_layout_of_transformers_gives_segment_anything_the_masks_of_transformers(tmp_path) -> None:
    """With windows that do not divide the picture, and a mask prompt; segment_anything's own network loads it all."""
    other = saved_by_transformers(tmp_path, window_size=3, global_attn_indexes=[1])
    encoder = build_vit(embed_dim=64, depth=2, num_heads=2, global_attention=(1,), window=3, image_size=64)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    prompts = PromptEncoder(256, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16)
    sam = Sam(encoder, prompts, MaskDecoder(transformer_dim=256, transformer=transformer)).eval()
    sam.load_state_dict(to_sam_layout(read_state_dict(tmp_path / "model.safetensors")))
    image, mask, box = torch.randn(1, 3, 64, 64), torch.randn(1, 1, 16, 16), torch.tensor([[9.0, 7.0, 50.0, 44.0]])
    with torch.no_grad():
        embedding = sam.image_encoder(image)
        sparse, dense = prompts(points=None, boxes=box, masks=mask)
        masks, iou = sam.mask_decoder(embedding, prompts.get_dense_pe(), sparse, dense, multimask_output=True)
        expected = other(pixel_values=image, input_boxes=box[None], input_masks=mask)
    torch.testing.assert_close(embedding, other.get_image_embeddings(image), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masks, expected.pred_masks[0, 0][None], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, expected.iou_scores[0, 0][None], atol=1e-4, rtol=1e-4)


# --- position tables


def test_position_tables_of_the_same_size_pass_unchanged() -> None:
    state = teacher(image_size=64).state_dict()
    assert equal(fit_positions(state, state), state)


def test_position_tables_are_interpolated_to_another_size_and_all_else_is_loaded_as_it_is(tmp_path) -> None:
    source, target = teacher(image_size=64, seed=0), teacher(image_size=128, seed=1)
    torch.save(source.state_dict(), tmp_path / "sam.pt")
    before = {name: value.clone() for name, value in source.state_dict().items()}
    load_weights(target, tmp_path / "sam.pt")
    for name, value in target.state_dict().items():
        if "pos_embed" in name:
            assert (value.shape, before[name].shape) == ((1, 8, 8, 64), (1, 4, 4, 64))
        elif "rel_pos" in name:
            assert (value.shape[0], before[name].shape[0]) == (15, 7)
        else:
            assert torch.equal(value, before[name]), name
    assert target(torch.zeros(1, 3, 128, 128)).shape == (1, 1, 128, 128)
    assert equal(source.state_dict(), before)


def test_a_linear_position_table_stays_linear_where_interpolation_sees_both_neighbors() -> None:
    ramp = torch.arange(16.0)
    table = ramp[None, :, None, None].expand(1, 16, 16, 8).clone()  # the row of each position
    relative = torch.arange(31.0)[:, None].expand(31, 4).clone()
    name = "image_encoder.blocks.0.attn.rel_pos_h"
    own = {"image_encoder.pos_embed": torch.zeros(1, 32, 32, 8), name: torch.zeros(63, 4)}
    state = fit_positions({"image_encoder.pos_embed": table, name: relative}, own)
    rows = (torch.arange(32.0) + 0.5) / 2 - 0.5
    found = state["image_encoder.pos_embed"]
    assert found.shape == (1, 32, 32, 8)
    torch.testing.assert_close(found[0, 4:-4, 0, 0], rows[4:-4], atol=0.05, rtol=0)  # PyTorch's cubic bends a little
    assert torch.equal(found, found[:, :, :1, :1].expand_as(found))
    steps = (torch.arange(63.0) + 0.5) * 31 / 63 - 0.5
    torch.testing.assert_close(state[name][2:-2, 0], steps[2:-2])


@pytest.mark.parametrize(("old", "new", "window"), [(256, 128, 3), (128, 256, 3), (64, 128, 4)])
def test_tables_of_windowed_blocks_stay_as_they_are(old, new, window) -> None:
    encoders = {
        size: build_vit(embed_dim=32, depth=2, num_heads=2, global_attention=(1,), window=window, image_size=size)
        for size in (old, new)
    }
    state = {f"image_encoder.{name}": torch.randn_like(value) for name, value in encoders[old].state_dict().items()}
    own = {f"image_encoder.{name}": value for name, value in encoders[new].state_dict().items()}
    fitted = fit_positions(state, own)
    windowed = [name for name in state if ".blocks.0." in name and "rel_pos" in name]
    assert len(windowed) == 2
    assert all(torch.equal(fitted[name], state[name]) for name in windowed)
    encoders[new].load_state_dict({name.removeprefix("image_encoder."): value for name, value in fitted.items()})
