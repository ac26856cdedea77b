# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from ignite.engine import Engine
from torch import Tensor

from monai_kdsam.data import EmbeddingStore, LoadEmbeddingd
from monai_kdsam.data.embeddings import embedding_key, image_checksum
from monai_kdsam.handlers import EmbeddingSaver

MADE_FROM = {"teacher": "abc", "image_size": 64, "pixel_mean": (1.0, 2.0)}


def embedding(n: int) -> Tensor:
    return torch.randn(256, 4, 4, generator=torch.Generator().manual_seed(n))


def filled(folder: Path, count: int = 5, **settings) -> EmbeddingStore:
    store = EmbeddingStore(folder, MADE_FROM, **settings)
    for n in range(count):
        store.write(f"c{n}/0", f"{n}.png", embedding(n))
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
    assert store.keys() == [f"c{n}/0" for n in range(5)]
    for n in (3, 0, 4):
        read = store.read(f"c{n}/0")
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, embedding(n), rtol=0, atol=tolerance)


def test_bytes_on_the_disk_follow_the_precision(tmp_path) -> None:
    sizes = {}
    for precision in ("float32", "float16", "int8"):
        store = filled(tmp_path / precision, count=1, precision=precision)
        sizes[precision] = store.path("c0/0").stat().st_size
    assert sizes["float32"] > 1.8 * sizes["float16"]
    assert sizes["float16"] > 1.5 * sizes["int8"]  # of 16 positions; the scales weigh less where there are 4096


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "xyz"}, r"made from something else: teacher abc \(now xyz\)\. Set that back"),
        ({"image_size": 128}, r"made from something else: image_size 64 \(now 128\)"),
        ({"window": 7}, r"made from something else: window None \(now 7\)"),
    ],
)
def test_a_cache_of_another_teacher_or_preprocessing_is_refused_by_name(
    tmp_path, items, caplog, change, message
) -> None:
    filled(tmp_path / "store")
    EmbeddingStore(tmp_path / "store", {"all": "of it is other"}).write("c/0", "0.png", embedding(0))
    other = EmbeddingStore(tmp_path / "store", MADE_FROM | change)
    with pytest.raises(ValueError, match=message):
        other.require(items)
    assert len(other.missing(items)) == 3
    assert "made from something else" in caplog.text  # the disk holds both
    assert filled(tmp_path / "store").read("c0/0").shape == (256, 4, 4)


def test_keys_follow_the_content_of_the_image_and_not_its_name(items) -> None:
    checksums = [image_checksum(item["image"]) for item in items]
    assert len(set(checksums)) == 3
    assert checksums[2] == checksums[3]


def test_missing_lists_each_content_once_in_every_variant(tmp_path, items) -> None:
    store = EmbeddingStore(tmp_path / "store", MADE_FROM, variants=2)
    wanted = store.missing(items)
    assert len(wanted) == 6
    for item in wanted[:5]:
        store.write(embedding_key(item), item["file"], embedding(0))
    assert [(item["file"], item["variant"]) for item in store.missing(items)] == [(items[2]["image"], 1)]
    with pytest.raises(ValueError, match=r"lacks 2 of 8 embeddings, the first of them variant 1 of .*2\.png.*`embed`"):
        store.require(items)


def test_a_changed_image_has_no_embedding_any_more(tmp_path, items) -> None:
    store = EmbeddingStore(tmp_path / "store", MADE_FROM)
    for item in store.missing(items):
        store.write(embedding_key(item), item["file"], embedding(0))
    complete = store.require(items)
    assert LoadEmbeddingd(store)({**complete[0], "variant": 0})["embedding"].shape == (256, 4, 4)
    Path(items[1]["image"]).write_bytes(b"another picture")
    with pytest.raises(ValueError, match=r"lacks 1 of 4 embeddings, the first of them variant 0 of .*1\.png"):
        store.require(items)


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[-100] ^= 0xFF
    else:
        content = bytearray()
    file.write_bytes(content)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_no_changed_byte_of_a_header_gives_another_value_or_an_error_of_another_kind(tmp_path, precision) -> None:
    store = filled(tmp_path, count=1, precision=precision)
    expected, file = store.read("c0/0"), store.path("c0/0")
    whole = file.read_bytes()
    for position in range(0, 8 + int.from_bytes(whole[:8], "little"), 5):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ (1 + position % 255)]) + whole[position + 1 :])
        try:
            found = store.read("c0/0")
        except ValueError as error:
            assert "--verify True" in str(error)  # noqa: PT017 - it may be read rightly as well
        else:
            assert torch.equal(found, expected), position


def test_the_embedding_of_another_image_is_found(tmp_path) -> None:
    store = filled(tmp_path, count=2)
    shutil.copy(store.path("c0/0"), store.path("c1/0"))
    with pytest.raises(ValueError, match=r"c1/0\.safetensors is damaged: its content is another"):
        store.read("c1/0")


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_named_when_it_is_read_and_verify_removes_it_alone(tmp_path, caplog, how) -> None:
    store = filled(tmp_path)
    damage(store.path("c1/0"), how)
    with pytest.raises(ValueError, match=r"The embedding .*c1/0\.safetensors is damaged: .*--verify True"):
        store.read("c1/0")
    with caplog.at_level(logging.WARNING):
        (message,) = store.verify()
    assert str(store.path("c1/0")) in message
    assert str(store.path("c1/0")) in caplog.text
    assert store.keys() == ["c0/0", "c2/0", "c3/0", "c4/0"]
    assert store.verify() == []


def batch(count: int) -> tuple[Engine, dict]:
    engine = Engine(lambda engine, batch: {"pred": torch.stack([embedding(n) for n in range(count)])})
    return engine, {
        "checksum": [f"c{n}" for n in range(count)],
        "variant": torch.zeros(count),
        "file": [f"{n}.png" for n in range(count)],
    }


def test_a_batch_is_kept_image_by_image(tmp_path) -> None:
    store, (engine, data) = EmbeddingStore(tmp_path, MADE_FROM), batch(3)
    EmbeddingSaver(store, expected=3).attach(engine)
    engine.run([data])
    assert store.keys() == ["c0/0", "c1/0", "c2/0"]
    torch.testing.assert_close(store.read("c2/0"), embedding(2), rtol=0, atol=2e-3)


def test_a_full_disk_is_told_before_the_first_write(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    store, (engine, data) = EmbeddingStore(tmp_path, MADE_FROM), batch(1)
    EmbeddingSaver(store, expected=1000).attach(engine)
    with pytest.raises(OSError, match=r"1000 embeddings of 0\.01 MiB need 0\.01 GiB.*Free disk space.*int8"):
        engine.run([data])
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_keeps_what_was_written_before(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path, count=2)

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device\. Free disk space and run the phase `embed` again"):
            store.write("d/0", "d.png", embedding(9))
    assert store.keys() == ["c0/0", "c1/0"]
    store.write("d/0", "d.png", embedding(9))
    assert len(store.keys()) == 3


def test_what_a_killed_run_has_left_is_never_read(tmp_path) -> None:
    store = filled(tmp_path, count=1)
    (store.folder / "c1").mkdir()
    (store.folder / "c1" / ".0.safetensors.host-77.part").write_bytes(b"half")
    assert store.keys() == ["c0/0"]
    assert store.verify() == []


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
    store = EmbeddingStore(tmp_path, MADE_FROM)
    with pytest.raises(ValueError, match=r"embedding of 0\.png is not finite"):
        store.write("c/0", "0.png", torch.full((256, 4, 4), float("nan")))
    assert store.keys() == []


def test_other_programs_read_the_files(tmp_path) -> None:
    store = filled(tmp_path, count=1)
    read = safetensors.torch.load_file(store.path("c0/0"))
    assert torch.equal(read["embedding"], embedding(0).half())


def test_the_shares_of_processes_are_apart_and_whole_even_while_others_write(tmp_path, items) -> None:
    store = EmbeddingStore(tmp_path / "store", MADE_FROM, variants=2)
    first = store.missing(items, rank=0, world_size=2)
    store.write(embedding_key(first[0]), first[0]["file"], embedding(0))
    second = store.missing(items, rank=1, world_size=2)
    keys = [embedding_key(item) for item in (*first, *second)]
    assert len(keys) == len(set(keys)) == 6
