# SPDX-License-Identifier: Apache-2.0
"""Latency of a click, of several prompts in one call, and of files for SAM's hosts, on this machine's CPU.

    pip install -e ".[export]"
    python benchmarks/latency.py --work /tmp/latency --prompts [--rounds 3]
    python benchmarks/latency.py --work /tmp/latency --sam fp32=BUNDLE/models/sam_fp32 int8=BUNDLE/models/sam_int8

`--sam` runs files of `export --layout sam`, whose weights are those of a bundle, by ONNX Runtime on one thread.
Decoders have random weights: time does not depend on them. Every case is loaded, warmed up and timed once a round, in
turn, so that what else the machine does falls on all alike; medians are compared. The processor time of one thread,
which other work hardly changes, is measured as well. Encoders and the peers are benchmarks/peers.py's, which builds and
loads its models by functions of this file.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
from machine import Table, table, write_result

from monai_kdsam.rgb import fit_longest, resize_pixels

FORMS = {
    "torch": "PyTorch fp32",
    "ort": "ONNX Runtime fp32",
    "ov": "OpenVINO fp32",
    "ort_int8": "ONNX Runtime INT8",
    "ov_int8": "OpenVINO INT8",
}
# In one call, at 256 pixels, which the student that ships has, and at SAM's.
PROMPT_COUNTS, PROMPTED_SIZES, RUNTIMES = (1, 2, 4, 8, 16, 64), (256, 1024), ("ort", "ov")
Part = tuple[str, str, Path, tuple[np.ndarray, ...]]  # name, form, folder and inputs of what is timed


def pictures(size: int, count: int = 4) -> list[np.ndarray]:
    """Normalized inputs (1, 3, S, S) of generated pictures."""
    from monai_kdsam.data.phantoms import PHANTOM_KINDS, make_phantom

    inputs = []
    for number in range(count):
        kind = PHANTOM_KINDS[number % len(PHANTOM_KINDS)]
        planes = make_phantom(kind, size=320, seed=number)[0].transpose(2, 0, 1)
        resized = resize_pixels(planes, *fit_longest(*planes.shape[1:], size)).astype(np.float32)
        padded = np.zeros((1, 3, size, size), dtype=np.float32)
        padded[0, :, : resized.shape[1], : resized.shape[2]] = (resized - 110) / 58
        inputs.append(padded)
    return inputs


def prompts(size: int, count: int) -> tuple[np.ndarray, ...]:
    """An embedding, boxes, their labels, and that there is no earlier answer."""
    embedding = np.random.default_rng(0).standard_normal((1, 1024, size // 16, size // 16)).astype(np.float32)
    box = np.array([[[0.2 * size, 0.2 * size], [0.7 * size, 0.6 * size]]], dtype=np.float32)
    no_mask = np.zeros((count, 1, size // 4, size // 4), dtype=np.float32), np.zeros(count, dtype=np.float32)
    return embedding, np.repeat(box, count, axis=0), np.repeat(np.array([[2, 3]]), count, axis=0), *no_mask


def build_decoders(work: Path) -> None:
    """Write what is missing of decoders that draw prompts and take fine features, as the bundle's does."""
    import onnx
    import openvino

    from monai_kdsam.export.onnx import to_graphs
    from monai_kdsam.networks import build_student

    for size in PROMPTED_SIZES:
        folder = work / f"decoder_{size}"
        if not (folder / "fp32.xml").exists():
            folder.mkdir(parents=True, exist_ok=True)
            network = build_student("resnet18", image_size=size, prompt_map=True, fine_features=True).eval()
            onnx.save(to_graphs(network)["decoder"], str(folder / "fp32.onnx"))
            model = openvino.convert_model(str(folder / "fp32.onnx"))
            openvino.save_model(model, folder / "fp32.xml", compress_to_fp16=False)


def build_forms(folder: Path, encoder, size: int, forms: list[str]) -> None:
    import torch

    torch.save(encoder.state_dict(), folder / "torch.pt")
    graph, model = to_graphs(folder, encoder, (torch.zeros(1, 3, size, size),), ["image"])
    build_int8(folder, graph, model, size, forms)


def to_graphs(folder: Path, module, examples: tuple, names: list[str]):
    """A module in float32 as files of ONNX and OpenVINO; both graphs."""
    import onnx
    import openvino
    import torch

    file = folder / "fp32.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, examples, input_names=names, dynamo=True, verbose=False)
    onnx.save(program.model_proto, str(file))
    model = openvino.convert_model(str(file))
    openvino.save_model(model, folder / "fp32.xml", compress_to_fp16=False)
    return onnx.load(str(file)), model


def build_int8(folder: Path, graph, model, size: int, forms: list[str]) -> None:
    """As the export does it, with few pictures."""
    if not {"ort_int8", "ov_int8"} & set(forms):
        return
    import nncf
    import onnx
    import openvino

    from monai_kdsam.export.int8 import quantization_settings

    nncf.set_log_level(logging.ERROR)
    # Attention keeps its softmax in float, convolutions need no such rules.
    inputs = pictures(size, 4 if "ort_int8" in forms else 1)  # the number makes no difference to the time
    has_attention = folder.name.startswith(("mobilesam", "litemedsam", "tiny_vit"))
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if has_attention else {}
    if "ort_int8" in forms:
        data = nncf.Dataset([{"image": image} for image in inputs])
        quantized = nncf.quantize(graph, data, **quantization_settings(graph, len(inputs)), **kind)
        onnx.save(quantized, str(folder / "int8.onnx"))
    if "ov_int8" in forms:
        quantized = nncf.quantize(model, nncf.Dataset(inputs), **quantization_settings(model, len(inputs)), **kind)
        openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


def file_of(folder: Path, form: str) -> Path:
    precision = "int8" if form.endswith("int8") else "fp32"
    return folder / ("torch.pt" if form == "torch" else f"{precision}.{'onnx' if form.startswith('ort') else 'xml'}")


def load(folder: Path, form: str, threads: int | None = None):
    """A function of arrays, of a file that ONNX Runtime or OpenVINO runs."""
    from monai_kdsam.runtime.sessions import open_part

    return open_part(file_of(folder, form), "onnx" if form.startswith("ort") else "openvino", threads=threads)


def interleaved(found: list[Part], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every case, one value a round."""
    measured: dict[str, list[float]] = {}
    for round_ in range(rounds):
        for name, form, folder, inputs in found:
            run = load(folder, form)
            run(*inputs)
            begin = time.perf_counter()
            run(*inputs)
            measured.setdefault(f"{name}/{form}", []).append(1000 * (time.perf_counter() - begin))
            del run
            gc.collect()
        print(f"round {round_ + 1} of {rounds}", flush=True)
    return measured


def processor_time(found: list[Part]) -> dict[str, float]:
    """Milliseconds of processor time on one thread, the least of three: what other processes do hardly changes it."""
    least: dict[str, float] = {}
    for name, form, folder, inputs in found:
        run = load(folder, form, threads=1)
        run(*inputs)
        values = []
        for _ in range(3):
            begin = time.process_time()
            run(*inputs)
            values.append(1000 * (time.process_time() - begin))
        least[f"{name}/{form}"] = min(values)
        del run
        gc.collect()
    return least


def megabytes(folder: Path, form: str) -> float:
    """Of the files that a form needs: OpenVINO's weights lie in a second one."""
    file = file_of(folder, form)
    files = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(f.stat().st_size for f in files) / 1e6


def prompt_tables(work: Path, rounds: int) -> dict[str, Table]:
    """Processor time of one thread and, with rounds, wall time of several prompts in one call, and over one's."""
    found = [
        (f"{size}_{count}", form, work / f"decoder_{size}", prompts(size, count))
        for size in PROMPTED_SIZES
        for count in PROMPT_COUNTS
        for form in RUNTIMES
    ]
    measured = {"prompts_of_one_thread": processor_time(found)}
    if rounds:
        wall = interleaved(found, rounds)
        measured["prompts"] = {key: statistics.median(values) for key, values in wall.items()}
    columns = [f"{size} px, {FORMS[form].removesuffix(' fp32')}" for size in PROMPTED_SIZES for form in RUNTIMES]
    tables = {}
    for name, times in measured.items():
        rows = []
        for count in PROMPT_COUNTS:
            keys = [(f"{size}_{count}/{form}", f"{size}_1/{form}") for size in PROMPTED_SIZES for form in RUNTIMES]
            rows.append([count, *(f"{times[key]:.4g} ({times[key] / times[one]:.1f})" for key, one in keys)])
        tables[name] = table(["prompts in one call, ms (over one)", *columns], rows)
    return tables


def sam_table(exports: list[str], rounds: int) -> Table:
    """Least and median of a picture of 768 x 1024, and of a click, in wall time of one thread; the exports in turn."""
    from monai_kdsam.runtime.sessions import open_part

    picture = np.random.default_rng(0).integers(0, 256, (768, 1024, 3)).astype(np.float32)
    point = np.array([[[500.0, 400.0]]], np.float32), np.ones((1, 1), np.float32)
    prompt = *point, np.zeros((1, 1, 256, 256), np.float32), np.zeros(1, np.float32), np.array([768, 1024], np.float32)
    folders = {name: Path(folder) for name, _, folder in (word.partition("=") for word in exports)}
    files = {name: [folder / f"{part}.onnx" for part in ("encoder", "decoder")] for name, folder in folders.items()}
    runs = {name: [open_part(file, "onnx", threads=1) for file in pair] for name, pair in files.items()}
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds + 1):
        for name, (encode, decode) in runs.items():
            begin = time.perf_counter()
            (embedding,) = encode(picture)
            encoded = time.perf_counter()
            decode(embedding, *prompt)
            times.setdefault((name, 0), []).append(1000 * (encoded - begin))
            times.setdefault((name, 1), []).append(1000 * (time.perf_counter() - encoded))
    rows = []
    for name, pair in files.items():
        counted = [times[name, part][1:] for part in (0, 1)]  # but for the first, which warms up
        spans = (f"{call(values):.1f}" for values in counted for call in (min, statistics.median))
        rows.append([name, *(f"{file.stat().st_size / 1e6:.1f}" for file in pair), *spans])
    columns = ["", "encoder, MB", "decoder, MB", "encode, least ms", "median", "click, least ms", "median"]
    return table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--rounds", type=int, default=7)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", action="store_true", help="several prompts in one call")
    what.add_argument("--sam", nargs="+", metavar="NAME=FOLDER", help="exports with `--layout sam`")
    given = parser.parse_args()
    if given.prompts:
        build_decoders(given.work)
        write_result("latency_prompts", **prompt_tables(given.work, given.rounds))
    else:
        write_result("latency_sam", files=sam_table(given.sam, given.rounds))


if __name__ == "__main__":
    main()
