# SPDX-License-Identifier: Apache-2.0
"""SAM's prompt encoder and mask decoder, made batched, differentiable and exact under padded prompts.

Parameter names stay SAM's, so official checkpoints load.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from segment_anything.modeling import TwoWayTransformer as SamTwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention as SamAttention
from segment_anything.modeling.transformer import TwoWayAttentionBlock as SamTwoWayAttentionBlock
from torch import Tensor

from monai_kdsam.networks.decoder_algebra import arrange, attend_to_image, image_attends, upscale
from monai_kdsam.networks.prompt_map import draw_prompts

__all__ = ["LayerNorm2d", "MaskDecoder", "PromptEncoder", "TwoWayTransformer"]

PADDING, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 0, 1, 2, 3


class PromptEncoder(SamPromptEncoder):
    """SAM's prompt encoder for a batch of `points`/`labels`, where rows hold different numbers of prompts.

    SAM adds one "not a point" token to prompts of points alone, none to prompts with a box, and gives no token at all
    without a prompt. `forward` reproduces that for each row, so that padding never changes a result.
    """

    prompt_map = False  # whether prompts are drawn as well, see `draw_prompts`; a property of the trained weights

    def forward(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embed prompts as tokens.

        Args:
            points: (B, N, 2) float, XY pixels in the frame of the network's input.
            labels: (B, N): 1 foreground, 0 background, 2 box top-left, 3 box bottom-right, -1 padding.

        Returns:
            tokens: (B, N + 1, 256), the last one is SAM's "not a point" token.
            ignored: (B, N + 1) bool, true where a token is padding and must not be attended to.
        """
        box = ((labels == BOX_TOP_LEFT) | (labels == BOX_BOTTOM_RIGHT)).any(dim=1, keepdim=True)
        click = ((labels == FOREGROUND) | (labels == BACKGROUND)).any(dim=1, keepdim=True)
        ignored = torch.cat([labels == PADDING, box | ~click], dim=1)

        points = F.pad(points, (0, 0, 0, 1))
        labels = F.pad(labels, (0, 1), value=PADDING)[..., None]
        tokens = self._embed_coordinates(points + 0.5)  # to the pixel's center
        tokens = torch.where(labels == PADDING, self.not_a_point_embed.weight, tokens)
        for label, embedding in enumerate(self.point_embeddings):
            tokens = torch.where(labels == label, tokens + embedding.weight, tokens)
        return tokens, ignored

    def _embed_coordinates(self, points: Tensor) -> Tensor:
        """SAM's Fourier features, always in float32: half precision cannot tell neighboring pixels apart."""
        height, width = self.input_image_size
        size = torch.tensor([width, height], dtype=torch.float32, device=points.device)
        with torch.autocast(points.device.type, enabled=False):
            return self.pe_layer._pe_encoding(points.float() / size)

    def positions(self) -> Tensor:
        """The positional encoding of the embedding's grid, (1, 256, S/16, S/16), float32."""
        with torch.autocast(self.no_mask_embed.weight.device.type, enabled=False):
            return self.get_dense_pe()

    def dense(
        self, points: Tensor, labels: Tensor, mask: Tensor | None = None, has_mask: Tensor | None = None
    ) -> Tensor:
        """What prompts add to the image: SAM's mask prompt, and with `prompt_map` all of them, drawn.

        Args:
            points: (B, N, 2), see `forward`.
            labels: (B, N), see `forward`.
            mask: (B, 1, S/4, S/4) logits of an earlier answer; None for none.
            has_mask: (B,) bool, which rows have one; None for all.

        Returns:
            (B, 256, S/16, S/16), or (1, 256, S/16, S/16) where it is the same for all rows.
        """
        if mask is not None and has_mask is not None:
            mask = torch.where(has_mask[:, None, None, None], mask, 0.0)
        if self.prompt_map:
            return self.mask_downscaling(draw_prompts(points, labels, self.input_image_size[0], mask))
        none = self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(-1, -1, *self.image_embedding_size)
        if mask is None:
            return none
        embedded = self.mask_downscaling(mask)
        return embedded if has_mask is None else torch.where(has_mask[:, None, None, None], embedded, none)


class Attention(SamAttention):
    """SAM's attention with a key mask, on PyTorch's fused kernel."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Attend (B, Nq, C) to (B, Nk, C); keys where `ignored` (B, Nk) is true are left out."""
        q = self._separate_heads(self.q_proj(q), self.num_heads)
        k = self._separate_heads(self.k_proj(k), self.num_heads)
        v = self._separate_heads(self.v_proj(v), self.num_heads)
        mask = None if ignored is None else ~ignored[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(self._recombine_heads(out))


class TwoWayAttentionBlock(SamTwoWayAttentionBlock):
    """SAM's block of four layers, in which nothing attends to padding tokens."""

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, ignored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens `queries` (B, N, C) and image `keys` (B, HW, C)."""
        if self.skip_first_layer_pe:
            queries = self.self_attn(queries, queries, queries, ignored)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries, ignored)
        queries, k = self.norm1(queries), keys + key_pe
        queries = self.norm2(queries + attend_to_image(self.cross_attn_token_to_image, queries + query_pe, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = image_attends(self.cross_attn_image_to_token, keys, k, queries + query_pe, queries, ignored)
        # Flat, because ONNX Runtime makes one step of a sum and the norm that follows it, eight times as slow. With a
        # row in front, because OpenVINO 2026.4, behind an encoder in 8 bits, takes 256 tokens for the 256 channels.
        return queries, self.norm4(keys.flatten(0, 1)[None]).view_as(keys)


class TwoWayTransformer(SamTwoWayTransformer):
    """SAM's two-way transformer over image tokens and masked prompt tokens."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Same parameters, our forward: the classes are exchanged in place so that SAM's constructors stay the only
        # description of the architecture.
        for module in self.modules():
            if type(module) is SamTwoWayAttentionBlock:
                module.__class__ = TwoWayAttentionBlock
            elif type(module) is SamAttention:
                module.__class__ = Attention

    def forward(
        self, image: Tensor, key_pe: Tensor, tokens: Tensor, ignored: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Attend images (B, HW, C) and tokens (B, N, C) to each other.

        Returns the first `count` tokens, those that are read, and the image. `key_pe` is a single row (1, HW, C).
        """
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe, ignored)
        queries, tokens = queries[:, :count], tokens[:, :count]
        attended = attend_to_image(self.final_attn_token_to_image, queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + attended), keys


class MaskDecoder(SamMaskDecoder):
    """SAM's mask decoder for images with equally many prompts each (SAM's own takes one image and many prompts)."""

    fine_features = False  # whether the embedding has 768 channels more, see `FineFeatures`

    def forward(
        self,
        embedding: Tensor,
        positions: Tensor,
        dense: Tensor,
        tokens: Tensor,
        ignored: Tensor,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict the masks of every prompt.

        Args:
            embedding: (B, 256 + F, h, w), the image encoder's output; F is 0, or 768 with `fine_features`.
            positions: (1, 256, h, w), the positional encoding of the grid.
            dense: (B * K, 256, h, w), the dense prompts: K of the first image, K of the second, ...; or one for all.
            tokens: (B * K, N, 256), the sparse prompts.
            ignored: (B * K, N) bool, the padding among them.
            multimask: SAM's three masks of an ambiguous prompt instead of its single one.

        Returns:
            masks: (B * K, 1 or 3, 4h, 4w) logits.
            iou: (B * K, 1 or 3), the predicted IoU of each mask.
        """
        prompts = tokens.shape[0] // embedding.shape[0]
        image = embedding[:, None, : self.transformer_dim].expand(-1, prompts, -1, -1, -1).flatten(0, 1)
        fine = embedding[:, self.transformer_dim :] if self.fine_features else None
        output = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([output, tokens], dim=1)
        ignored = F.pad(ignored, (output.shape[1], 0), value=False)
        chosen = range(1, self.num_mask_tokens) if multimask else range(1)
        # `positions` stay one row for all: a constant that exporters transform in advance.
        image = (image + dense).flatten(2).mT
        tokens, image = self.transformer(image, positions.flatten(2).mT, tokens, ignored, 1 + chosen.stop)

        weights = torch.stack([self.output_hypernetworks_mlps[index](tokens[:, 1 + index]) for index in chosen], 1)
        upscaled = upscale(self.output_upscaling, image, fine)
        masks = arrange(weights @ upscaled.mT, *positions.shape[2:])
        return masks, self.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]
