# SPDX-License-Identifier: Apache-2.0
"""Read, check and split pictures with masks."""

from __future__ import annotations

from monai_kdsam.data.archive import Archive, root_of
from monai_kdsam.data.checks import Problem, check_images
from monai_kdsam.data.datalist import distillation_items, prepare_datalist, require_items
from monai_kdsam.data.embeddings import EmbeddingStore, LoadEmbeddingd
from monai_kdsam.data.image_reader import Image2DReader, list_images
from monai_kdsam.data.layouts import LAYOUTS, read_dataset
from monai_kdsam.data.mask_writer import MaskWriter, check_mask_format
from monai_kdsam.data.paths import format_name
from monai_kdsam.data.remembered_image import RememberedImaged
from monai_kdsam.data.seeded_dataset import SeededDataset
from monai_kdsam.data.slices import write_slices
from monai_kdsam.data.splits import duplicate_groups, split_items
from monai_kdsam.data.volume_reader import VolumeReader, check_volumes, list_volumes, root_of_volumes
from monai_kdsam.data.volume_writer import volume_writer

__all__ = [
    "LAYOUTS",
    "Archive",
    "EmbeddingStore",
    "Image2DReader",
    "LoadEmbeddingd",
    "MaskWriter",
    "Problem",
    "RememberedImaged",
    "SeededDataset",
    "VolumeReader",
    "check_images",
    "check_mask_format",
    "check_volumes",
    "distillation_items",
    "duplicate_groups",
    "format_name",
    "list_images",
    "list_volumes",
    "prepare_datalist",
    "read_dataset",
    "require_items",
    "root_of",
    "root_of_volumes",
    "split_items",
    "volume_writer",
    "write_slices",
]
