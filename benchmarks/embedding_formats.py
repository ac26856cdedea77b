#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes and randomly reads embeddings of 1024-pixel images (fp16, 2 MiB each) in three libraries' formats.

    pip install safetensors lmdb zarr
    python benchmarks/embedding_formats.py [--count 256] [--dir DIR]

Formats take turns, each round in a folder of its own; the table shows medians. A read is of one embedding, in random
order, copied into memory of its own. The files stay in the page cache, so it is the format that is measured and not the
disk. WebDataset is left out: it streams tar files and has no read of one sample.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHAPE, SHARD = (256, 64, 64), 32
Read = Callable[[int], np.ndarray]


def use_safetensors(folder: Path, data: np.ndarray) -> Callable[[], Read]:
    """Shards of 32, memory-mapped."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    for start in range(0, len(data), SHARD):
        shard = {str(start + n): item for n, item in enumerate(data[start : start + SHARD])}
        save_file(shard, folder / f"{start}.safetensors")

    def opened() -> Read:
        files = [safe_open(folder / f"{start}.safetensors", "numpy") for start in range(0, len(data), SHARD)]
        return lambda n: files[n // SHARD].get_tensor(str(n))

    return opened


def use_lmdb(folder: Path, data: np.ndarray) -> Callable[[], Read]:
    """One B-tree, a transaction for each 32."""
    import lmdb

    with lmdb.open(str(folder), map_size=2 * data.nbytes + 2**24) as database:
        for start in range(0, len(data), SHARD):
            with database.begin(write=True) as transaction:
                for n in range(start, min(start + SHARD, len(data))):
                    transaction.put(str(n).encode(), data[n].tobytes())

    def opened() -> Read:
        transaction = lmdb.open(str(folder), readonly=True, lock=False).begin(buffers=True)
        return lambda n: np.frombuffer(transaction.get(str(n).encode()), np.float16).reshape(SHAPE).copy()

    return opened


def use_zarr(folder: Path, data: np.ndarray) -> Callable[[], Read]:
    """An array with one uncompressed chunk for each embedding, in shards of 32."""
    import zarr

    array = zarr.create_array(
        str(folder / "a"), shape=data.shape, dtype="f2", chunks=(1, *SHAPE), shards=(SHARD, *SHAPE), compressors=None
    )
    for start in range(0, len(data), SHARD):
        array[start : start + SHARD] = data[start : start + SHARD]

    def opened() -> Read:
        stored = zarr.open_array(str(folder / "a"), mode="r")
        return lambda n: np.asarray(stored[n])

    return opened


def measure(use: Callable[[Path, np.ndarray], Callable[[], Read]], data: np.ndarray, root: Path) -> list[float]:
    """Milliseconds to write one, to open all, to read one; checks what was read."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        times = [time.perf_counter()]
        opened = use(folder, data)
        times.append(time.perf_counter())
        read = opened()
        times.append(time.perf_counter())
        order = np.random.default_rng(0).permutation(len(data))
        for n in order:
            np.copyto(np.empty_like(data[n]), read(int(n)))
        times.append(time.perf_counter())
        for n in order[:4]:
            np.testing.assert_array_equal(read(int(n)), data[n])
        write, opening, reading = np.diff(times) * 1e3
        return [write / len(data), opening, reading / len(data)]
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", help="where the files are written for the time being")
    arguments = parser.parse_args()
    data = np.random.default_rng(0).standard_normal((arguments.count, *SHAPE), dtype=np.float32).astype(np.float16)
    formats = {"safetensors": use_safetensors, "LMDB": use_lmdb, "zarr": use_zarr}
    times: dict[str, list[list[float]]] = {name: [] for name in formats}
    with tempfile.TemporaryDirectory(dir=arguments.dir) as root:
        for _ in range(arguments.rounds):
            for name, use in formats.items():
                times[name].append(measure(use, data, Path(root)))
    print("| format | write, ms each | open, ms | read at random, ms each |\n|---|---|---|---|")
    for name, rounds in times.items():
        write, opening, reading = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {write:.2f} | {opening:.1f} | {reading:.2f} |")


if __name__ == "__main__":
    main()
