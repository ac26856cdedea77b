# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monai_kdsam.data import EmbeddingStore, EmbeddingWriter, LoadEmbeddingd, embeddings
from monai_kdsam.data.embeddings import embedding_key, image_checksum
from monai_kdsam.files import LEFTOVER_AGE

MADE_FROM = {"teacher": "abc", "image_size": 64, "pixel_mean": (1.0, 2.0)}


def embedding(n: int) -> Tensor:
    return torch.randn(256, 4, 4, generator=torch.Generator().manual_seed(n))


def filled(folder: Path, count: int = 5, size: int = 2, **settings) -> EmbeddingStore:
    store = EmbeddingStore(folder, MADE_FROM, **settings)
    writer = EmbeddingWriter(store, expected=count, size=size)
    for n in range(count):
        writer.add(f"c{n}/0", f"{n}.png", embedding(n))
    writer.flush()
    return EmbeddingStore(folder, MADE_FROM, **settings)


@pytest.fixture
def items(tmp_path) -> list[dict]:
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(b"picture %d" % n)
    shutil.copy(tmp_path / "2.png", tmp_path / "twin.png")
    return [{"image": str(tmp_path / f"{name}.png"), "label": "-"} for name in ("0", "1", "2", "twin")]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("float16", 2e-3), ("int8", 2e-2)])
def test_what_is_read_is_what_was_written(tmp_path, precision, tolerance) -> None:
    store = filled(tmp_path, precision=precision)
    assert len(store) == 5
    for n in (3, 0, 4):
        read = store.read(f"c{n}/0")
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, embedding(n), rtol=0, atol=tolerance)


def test_bytes_on_the_disk_follow_the_precision(tmp_path) -> None:
    sizes = {}
    for precision in ("float32", "float16", "int8"):
        filled(tmp_path / precision, precision=precision)
        sizes[precision] = sum(file.stat().st_size for file in (tmp_path / precision).iterdir())
    assert sizes["float32"] > 1.8 * sizes["float16"]
    assert sizes["float16"] > 1.5 * sizes["int8"]  # of 16 positions; the scales weigh less where there are 4096


def test_a_shard_is_written_when_full_when_time_is_up_and_at_the_end(tmp_path) -> None:
    now = [0.0]
    store = EmbeddingStore(tmp_path, MADE_FROM)
    writer = EmbeddingWriter(store, expected=9, size=3, seconds=60, clock=lambda: now[0])

    def shards_after(n: int) -> int:
        writer.add(f"c{n}/0", f"{n}.png", embedding(n))
        return len(list(tmp_path.glob("*.safetensors")))

    assert [shards_after(n) for n in range(4)] == [0, 0, 1, 1]
    now[0] = 61.0
    assert shards_after(4) == 2
    assert shards_after(5) == 2
    writer.flush()
    store.refresh()
    assert len(store) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "xyz"}, r"made from something else: teacher abc \(now xyz\)"),
        ({"image_size": 128}, r"made from something else: image_size 64 \(now 128\)"),
        ({"window": 7}, r"made from something else: window None \(now 7\)"),
    ],
)
def test_a_cache_of_another_teacher_or_preprocessing_is_refused_by_name(tmp_path, change, message) -> None:
    filled(tmp_path)
    with pytest.raises(ValueError, match=message):
        EmbeddingStore(tmp_path, MADE_FROM | change)


def test_keys_follow_the_content_of_the_image_and_not_its_name(items) -> None:
    checksums = [image_checksum(item["image"]) for item in items]
    assert len(set(checksums)) == 3
    assert checksums[2] == checksums[3]


def test_missing_lists_each_content_once_in_every_variant(tmp_path, items) -> None:
    store = EmbeddingStore(tmp_path / "store", MADE_FROM, variants=2)
    wanted = store.missing(items)
    assert len(wanted) == 6
    writer = EmbeddingWriter(store, expected=6)
    for item in wanted[:5]:
        writer.add(embedding_key(item), item["file"], embedding(0))
    writer.flush()
    store.refresh()
    assert [(item["file"], item["variant"]) for item in store.missing(items)] == [(items[2]["image"], 1)]
    with pytest.raises(ValueError, match=r"lacks 2 of 8 embeddings, the first of them variant 1 of .*2\.png.*`embed`"):
        store.require(items)


def test_a_changed_image_has_no_embedding_any_more(tmp_path, items) -> None:
    store = EmbeddingStore(tmp_path / "store", MADE_FROM)
    writer = EmbeddingWriter(store, expected=3)
    for item in store.missing(items):
        writer.add(embedding_key(item), item["file"], embedding(0))
    writer.flush()
    store.refresh()
    complete = store.require(items)
    assert LoadEmbeddingd(store)({**complete[0], "variant": 0})["embedding"].shape == (256, 4, 4)
    Path(items[1]["image"]).write_bytes(b"another picture")
    with pytest.raises(ValueError, match=r"lacks 1 of 4 embeddings, the first of them variant 0 of .*1\.png"):
        store.require(items)


def damage(shard: Path, how: str) -> None:
    content = bytearray(shard.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[-100] ^= 0xFF
    else:
        content = bytearray()
    shard.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty"])
def test_a_shard_that_is_not_whole_is_refused_when_training(tmp_path, items, how) -> None:
    filled(tmp_path / "store")
    shard = sorted((tmp_path / "store").iterdir())[0]
    damage(shard, how)
    with pytest.raises(ValueError, match=rf"{shard.name} is no whole shard.*--verify True"):
        EmbeddingStore(tmp_path / "store", MADE_FROM).require(items)


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path) -> None:
    filled(tmp_path, count=1)
    damage(next(tmp_path.iterdir()), "flipped")
    with pytest.raises(ValueError, match=r"The embedding of 0\.png in .* is damaged.*--verify True"):
        EmbeddingStore(tmp_path, MADE_FROM).read("c0/0")


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_no_changed_byte_of_a_header_gives_another_value_or_an_error_of_another_kind(tmp_path, precision) -> None:
    right = filled(tmp_path, count=2, precision=precision)
    expected = {key: right.read(key) for key in right}
    (shard,) = tmp_path.iterdir()
    whole = shard.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for position in range(0, length, 7):
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ (1 + position % 255)]) + whole[position + 1 :])
        embeddings._opened.cache_clear()
        store = EmbeddingStore(tmp_path, MADE_FROM, precision=precision)
        for key in store:
            try:
                found = store.read(key)
            except ValueError as error:
                assert "--verify True" in str(error)  # noqa: PT017 - it may be read rightly as well
            else:
                assert torch.equal(found, expected[key]), position


def test_the_embedding_of_another_key_is_found(tmp_path) -> None:
    """As a name in the table of tensors that became another one's."""
    filled(tmp_path, count=2)
    (shard,) = tmp_path.iterdir()
    content = shard.read_bytes()
    shard.write_bytes(
        content.replace(b'"0":{"dtype"', b'"x":{"dtype"')
        .replace(b'"1":{"dtype"', b'"0":{"dtype"')
        .replace(b'"x":{"dtype"', b'"1":{"dtype"')
    )
    assert shard.read_bytes() != content
    embeddings._opened.cache_clear()
    store = EmbeddingStore(tmp_path, MADE_FROM)
    for key in store:
        with pytest.raises(ValueError, match="is damaged"):
            store.read(key)
    assert store.verify() != []


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_verify_names_the_damaged_shard_and_removes_it_alone(tmp_path, caplog, how) -> None:
    filled(tmp_path)
    shards = sorted(tmp_path.iterdir())
    damage(shards[1], how)
    store = EmbeddingStore(tmp_path, MADE_FROM)
    with caplog.at_level(logging.WARNING):
        (message,) = store.verify()
    assert shards[1].name in message
    assert shards[1].name in caplog.text
    assert sorted(tmp_path.iterdir()) == [shards[0], shards[2]]
    assert store.verify() == []


def test_a_full_disk_is_told_before_the_first_write(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    writer = EmbeddingWriter(EmbeddingStore(tmp_path, MADE_FROM), expected=1000)
    with pytest.raises(OSError, match=r"1000 embeddings of 0\.01 MiB need 0\.01 GiB.*Free disk space.*int8"):
        writer.add("c/0", "0.png", embedding(0))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_keeps_the_shards_before(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path, count=2)
    writer = EmbeddingWriter(store, expected=2)
    writer.add("d/0", "d.png", embedding(9))

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device\. Free disk space and run the phase `embed` again"):
            writer.flush()
    store.refresh()
    assert len(store) == 2
    writer.flush()
    store.refresh()
    assert len(store) == 3


def test_the_leftover_of_a_killed_run_is_removed_and_never_read(tmp_path) -> None:
    store = filled(tmp_path, count=2)
    leftover, writing = tmp_path / ".r0-1234.safetensors.a-77.part", tmp_path / ".r0-5678.safetensors.b-77.part"
    for file in (leftover, writing):
        file.write_bytes(b"half")
    os.utime(leftover, (time.time() - LEFTOVER_AGE - 1,) * 2)
    assert len(EmbeddingStore(tmp_path, MADE_FROM)) == 2
    EmbeddingWriter(store, expected=1).add("d/0", "d.png", embedding(9))
    assert not leftover.exists()
    assert writing.exists(), "another machine is writing it"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int4"}, "`embedding_precision` to be one of float32, float16, int8, got 'int4'"),
        ({"variants": 0}, "`embedding_variants` to be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingStore(tmp_path, MADE_FROM, **settings)


def test_an_embedding_that_is_not_finite_is_not_kept(tmp_path) -> None:
    writer = EmbeddingWriter(EmbeddingStore(tmp_path, MADE_FROM), expected=1)
    with pytest.raises(ValueError, match=r"embedding of 0\.png is not finite"):
        writer.add("c/0", "0.png", torch.full((256, 4, 4), float("nan")))


def test_the_shares_of_processes_are_apart_and_whole_even_while_others_write(tmp_path, items) -> None:
    store = EmbeddingStore(tmp_path / "store", MADE_FROM, variants=2)
    first = store.missing(items, rank=0, world_size=2)
    writer = EmbeddingWriter(store, expected=3)
    writer.add(embedding_key(first[0]), first[0]["file"], embedding(0))
    writer.flush()
    store.refresh()
    second = store.missing(items, rank=1, world_size=2)
    keys = [embedding_key(item) for item in (*first, *second)]
    assert len(keys) == len(set(keys)) == 6
