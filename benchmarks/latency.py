# SPDX-License-Identifier: Apache-2.0
"""Latency of our students' encoders and of the peers', form by form, and of a click, on this machine's CPU.

    pip install -e ".[export]" timm matplotlib
    python benchmarks/latency.py --work /tmp/latency [--rounds 7] [--vit-h] [--plot docs/images/latency.png]
    python benchmarks/latency.py --work /tmp/latency --clicks [--rounds 7]  # clicks and 8-bit encoders
    python benchmarks/latency.py --work /tmp/latency --prompts [--rounds 3]  # several prompts in one call
    python benchmarks/latency.py --work /tmp/latency --sam fp32=BUNDLE/models/sam_fp32 int8=BUNDLE/models/sam_int8
    python benchmarks/latency.py --work /tmp/latency --trunks all [--rounds 3] [--variants 1024_sam 512_sam]

`--sam` runs files of `export --layout sam`, whose weights are those of a bundle, by ONNX Runtime on one thread.
The last form compares trunks that a student could have, by the processor time of one thread alone, since other work
hardly changes it; each run of it adds its rounds to those that `--work` has.

All weights are random: time does not depend on them. Every case is loaded, warmed up and timed once a round, in turn,
so that what else the machine does falls on all alike, and never more than one model is in memory; medians are compared.
The processor time of one thread, which other work hardly changes, is measured as well. Start-up (imports, loading,
first image) and peak memory come from a process of each case's own. Models and raw numbers are kept in `--work`, and
an interrupted run goes on there. The peers are timm's trunks with necks of the shape that their repositories have,
written here: MobileSAM's TinyViT-5M (last stage at stride 16), EdgeSAM's RepViT-M1 (reparameterized), NanoSAM's
ResNet-18. INT8 is calibrated on generated pictures.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from encoders import ENCODERS, FORMS, TRUNK_FORMS, TRUNKS, Cases, build_encoder, trunk_cases
from machine import Table, peak_mib, table, write_result

FLOAT = ("torch", "ort", "ov", "ov_bf16")
INT8 = ("ort_int8", "ov_int8")
DECODERS = {
    f"decoder_{size}_{count}": (f"click at {size} px, {count} prompt{'s' if count > 1 else ''}", size, count)
    for size, count in ((1024, 1), (1024, 8), (512, 1))
}

DECODER_FORMS = {"decoder_1024": "", "decoder_512": ""}
# In one call, at 256 pixels, which the student that ships has, and at SAM's.
PROMPT_COUNTS, PROMPTED_SIZES, RUNTIMES = (1, 2, 4, 8, 16, 64), (256, 1024), ("ort", "ov")
# A click is to take a tenth of these.
CLICK_ENCODERS: Cases = {name: (*ENCODERS[name][:2], ("ov_int8",)) for name in ("resnet50_1024", "resnet50_512")}


def pictures(size: int, count: int = 4) -> list[np.ndarray]:
    """Normalized inputs (1, 3, S, S) of generated pictures."""
    from monai_kdsam.data.phantoms import PHANTOM_KINDS, make_phantom
    from monai_kdsam.rgb import fit_longest, resize_pixels

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


def build_decoder(size: int):
    """Of a student whose prompts are drawn, with fine features, as the bundle has it."""
    from monai_kdsam.networks import build_student

    return build_student("resnet18", image_size=size, prompt_map=True, fine_features=True).eval()


def prepare(work: Path, forms_of: dict[str, str]) -> None:
    """Write what is missing of every model file; each model in a process of its own, to give its memory back."""
    for name, forms in forms_of.items():
        done = work / name / "done"
        if not done.exists() or not set(forms.split(",")) <= set(done.read_text(encoding="utf-8").split(",")):
            subprocess.run([sys.executable, __file__, "--work", str(work), "--build", name, forms], check=True)


def build(work: Path, name: str, forms: list[str]) -> None:
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    if name.startswith("decoder"):
        import onnx
        import openvino
        import torch

        from monai_kdsam.export.onnx import to_graphs

        file = folder / "fp32.onnx"
        network = build_decoder(int(name.rpartition("_")[2]))
        torch.save(network.state_dict(), folder / "torch.pt")
        onnx.save(to_graphs(network)["decoder"], str(file))
        openvino.save_model(openvino.convert_model(str(file)), folder / "fp32.xml", compress_to_fp16=False)
    else:
        build_forms(folder, *build_encoder(name), forms)
    (folder / "done").write_text(",".join(forms), encoding="utf-8")
    print(f"built {name}", flush=True)


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
    if not set(forms) & set(INT8):
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
    """A function of arrays."""
    if form == "torch":
        return load_torch(folder.name, threads)
    if form != "ov_bf16":
        from monai_kdsam.runtime.sessions import open_part

        return open_part(file_of(folder, form), "onnx" if form.startswith("ort") else "openvino", threads=threads)
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = openvino.Core().compile_model(str(file_of(folder, form)), "CPU", settings).create_infer_request()
    return lambda *arrays: request.infer(list(arrays))


def load_torch(name: str, threads: int | None = None):
    import torch

    if threads is not None:
        torch.set_num_threads(threads)

    if name.startswith("decoder"):
        from monai_kdsam.export.parts import Decoder

        call = Decoder(build_decoder(int(name.rpartition("_")[2])))
    else:
        call = build_encoder(name)[0].to(memory_format=torch.channels_last)

    def run(*arrays):
        with torch.no_grad():
            return call(*(torch.from_numpy(array) for array in arrays))

    return run


def cases(work: Path, encoders: Cases) -> list[tuple[str, str, Path, tuple[np.ndarray, ...]]]:
    """(name, form, folder, inputs) of every case."""
    found = []
    for name, (_, size, forms) in encoders.items():
        image = pictures(size, 1)[0]
        found += [(name, form, work / name, (image,)) for form in forms]
    for name, (_, size, count) in DECODERS.items():
        found += [(name, form, work / f"decoder_{size}", prompts(size, count)) for form in ("torch", "ort", "ov")]
    return found


def interleaved(
    found: list[tuple[str, str, Path, tuple[np.ndarray, ...]]], rounds: int, clock=time.perf_counter, threads=None
) -> dict[str, list[float]]:
    """Milliseconds of every case, one value a round."""
    measured: dict[str, list[float]] = {}
    for round_ in range(rounds):
        for name, form, folder, inputs in found:
            if name.startswith("vit") and round_ > 2:
                continue  # ten times as slow as the others; three values are enough
            run = load(folder, form, threads)
            run(*inputs)
            begin = clock()
            run(*inputs)
            measured.setdefault(f"{name}/{form}", []).append(1000 * (clock() - begin))
            del run
            gc.collect()
        print(f"round {round_ + 1} of {rounds}", flush=True)
    return measured


def processor_time(found: list[tuple[str, str, Path, tuple[np.ndarray, ...]]]) -> dict[str, float]:
    """Milliseconds of processor time on one thread, the least of three: what other processes do hardly changes it."""
    least: dict[str, float] = {}
    for name, form, folder, inputs in found:
        if name.startswith("vit"):
            continue
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


def compare_trunks(work: Path, chosen: Cases, rounds: int) -> Table:
    """A table of medians of one thread's processor time, with the rounds of earlier runs in `work`."""
    prepare(work, {name: ",".join(forms) for name, (_, _, forms) in chosen.items()})
    image = {size: (pictures(size, 1)[0],) for _, size, _ in chosen.values()}
    found = [(name, form, work / name, image[size]) for name, (_, size, forms) in chosen.items() for form in forms]
    file = work / "trunks.json"
    measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for _ in range(rounds):
        for key, values in interleaved(found, 1, time.process_time, threads=1).items():
            measured[key] = measured.get(key, []) + values
        file.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    rows = []
    for name, (title, _, _) in chosen.items():
        times = [measured.get(f"{name}/{form}") for form in TRUNK_FORMS]
        cells = [f"{statistics.median(values):.0f}" if values else "-" for values in times]
        rows.append([title, f"{megabytes(work / name, 'ov'):.0f}", *cells])
    return table(["encoder", "file, MB", *(FORMS[form] for form in TRUNK_FORMS)], rows)


def alone(work: Path, name: str, form: str) -> None:
    """Start-up and peak memory of this process, to stdout as JSON."""
    begin = time.perf_counter()
    if name == "vit_h":
        run, inputs = load_torch("vit_h"), (np.zeros((1, 3, 1024, 1024), dtype=np.float32),)
    else:
        run = load(work / name, form)
        inputs = (np.zeros((1, 3, ENCODERS[name][1], ENCODERS[name][1]), dtype=np.float32),)
    loaded = time.perf_counter()
    run(*inputs)
    first = time.perf_counter()
    print(json.dumps({"start": loaded - begin, "first": first - loaded, "peak": peak_mib()}))


def measure_alone(work: Path, name: str, form: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--work", str(work), "--alone", name, form]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def megabytes(folder: Path, form: str) -> float:
    """Of the files that a form needs: OpenVINO's weights lie in a second one."""
    file = file_of(folder, form)
    files = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(f.stat().st_size for f in files) / 1e6


def click_table(times: dict[str, float]) -> Table:
    rows = [
        [label, *(f"{times[f'{name}/{form}']:.1f}" for form in ("torch", "ort", "ov"))]
        for name, (label, _, _) in DECODERS.items()
    ]
    return table(["a click, ms", "PyTorch", "ONNX Runtime", "OpenVINO"], rows)


def click_tables(work: Path, rounds: int) -> dict[str, Table]:
    """Wall and processor time of clicks and of 8-bit encoders, measured anew."""
    wall = interleaved(cases(work, CLICK_ENCODERS), rounds)
    medians = {key: statistics.median(values) for key, values in wall.items()}
    tables = {}
    for suffix, times in (("", medians), ("_of_one_thread", processor_time(cases(work, CLICK_ENCODERS)))):
        tables[f"clicks{suffix}"] = click_table(times)
        rows = []
        for name, (label, size, forms) in CLICK_ENCODERS.items():
            share = ratio(times, (f"decoder_{size}_1", ("ort", "ov")), (name, forms))
            rows.append([label, f"{times[f'{name}/ov_int8']:.0f}", share])
        tables[f"encoders{suffix}"] = table(["encoder in 8 bits, OpenVINO", "ms", "a click over it"], rows)
    return tables


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


def report(work: Path, results: dict) -> dict[str, Table]:
    """Encoders and clicks in wall time (medians) and in one thread's time (least of three); ratios; start-up."""
    tables = {}
    for suffix, times in (("", results["wall"]), ("_of_one_thread", results["processor"])):
        rows = [
            [label, *(f"{times[f'{name}/{form}']:.0f}" if f"{name}/{form}" in times else "-" for form in FORMS)]
            for name, (label, _, _) in ENCODERS.items()
            if any(key.startswith(f"{name}/") for key in times)
        ]
        tables[f"encoders{suffix}"] = table(["encoder, ms an image", *FORMS.values()], rows)
        tables[f"clicks{suffix}"] = click_table(times)
    tables["ratios"] = targets(results["processor"], results["wall"])
    rows = []
    for key, values in results["alone"].items():
        name, form = key.split("/")
        title = ENCODERS[name][0] if name in ENCODERS else "SAM, ViT-H (one run)"
        size = f"{megabytes(work / name, form):.0f}" if name in ENCODERS else "-"
        rows.append([title, FORMS[form], size, *(f"{values[part]:.1f}" for part in ("start", "first", "peak"))])
    columns = ["encoder", "form", "file, MB", "start-up, s", "first image, s", "peak memory, MB"]
    return tables | {"start_up": table(columns, rows)}


def ratio(times: dict[str, float], *sides: tuple[str, tuple[str, ...]]) -> str:
    """The fastest form of one model over the fastest form of another."""
    above, below = ([times[f"{n}/{form}"] for form in forms if f"{n}/{form}" in times] for n, forms in sides)
    return f"{min(above) / min(below):.2g}" if above and below else "-"


def targets(processor: dict[str, float], wall: dict[str, float]) -> Table:
    """What was aimed at, and what came out."""
    fp32 = ("torch", "ort", "ov")
    ratios = [
        (
            "MobileSAM's best fp32 over our ResNet-50 INT8, 1024 px",
            "3 or more",
            ("mobilesam", fp32),
            ("resnet50_1024", INT8),
        ),
        ("MobileSAM's best float, bf16 too, over the same", "3 or more", ("mobilesam", FLOAT), ("resnet50_1024", INT8)),
        (
            "MobileSAM's best fp32 over our ResNet-50 INT8, 512 px",
            "10 or more",
            ("mobilesam", fp32),
            ("resnet50_512", INT8),
        ),
        ("MobileSAM's best float, bf16 too, over the same", "10 or more", ("mobilesam", FLOAT), ("resnet50_512", INT8)),
        ("a click over our ResNet-50 INT8, 1024 px", "0.1 or less", ("decoder_1024_1", fp32), ("resnet50_1024", INT8)),
        ("a click over our ResNet-50 fp32, 1024 px", "0.1 or less", ("decoder_1024_1", fp32), ("resnet50_1024", fp32)),
        ("a click over our ResNet-50 INT8, 512 px", "0.1 or less", ("decoder_512_1", fp32), ("resnet50_512", INT8)),
        ("our ResNet-50 INT8, 1024 px, over EdgeSAM's INT8", "1 or less", ("resnet50_1024", INT8), ("edgesam", INT8)),
        ("our ResNet-18 INT8, 1024 px, over EdgeSAM's INT8", "1 or less", ("resnet18_1024", INT8), ("edgesam", INT8)),
        ("the same with the neck `sam`", "1 or less", ("resnet18_1024_sam", INT8), ("edgesam", INT8)),
    ]
    rows = [[title, aim, ratio(wall, *sides), ratio(processor, *sides)] for title, aim, *sides in ratios]
    return table(["ratio", "aim", "wall time", "processor time"], rows)


def plot(times: dict[str, float], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name, (_, _, forms) in ENCODERS.items() if len(forms) == len(FORMS)]
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    height = 0.8 / len(FORMS)
    for index, (form, label) in enumerate(FORMS.items()):
        positions = [row + index * height for row in range(len(names))]
        axes.barh(positions, [times[f"{name}/{form}"] for name in names], height, label=label)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], [ENCODERS[name][0] for name in names])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("image encoder, ms of wall time on two cores, medians (log scale)")
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def once(file: Path, measure):
    """What a file holds, or else what is measured into it: delete it to measure anew."""
    if not file.exists():
        file.write_text(json.dumps(measure(), indent=1), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models and the raw numbers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clicks", action="store_true", help="only the clicks and the encoders they are held against")
    parser.add_argument("--prompts", action="store_true", help="only clicks, several in one call")
    parser.add_argument("--sam", nargs="+", metavar="NAME=FOLDER", help="only exports with `--layout sam`")
    parser.add_argument("--vit-h", action="store_true", help="one image through SAM's ViT-H in PyTorch as well")
    parser.add_argument("--plot", type=Path, help="picture of the encoders' wall time")
    parser.add_argument("--trunks", nargs="+", metavar="NAME", help=f"all, or some of {', '.join(TRUNKS)}")
    parser.add_argument("--variants", nargs="+", default=["1024_sam", "1024_fpn", "512_sam", "512_fpn"])
    parser.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.work, arguments.build[0], arguments.build[1].split(","))
    elif arguments.alone:
        alone(arguments.work, *arguments.alone)
    elif arguments.prompts:
        prepare(arguments.work, {f"decoder_{size}": "" for size in PROMPTED_SIZES})
        write_result("latency_prompts", **prompt_tables(arguments.work, arguments.rounds))
    elif arguments.sam:
        write_result("latency_sam", files=sam_table(arguments.sam, arguments.rounds))
    elif arguments.trunks:
        names = list(TRUNKS) if arguments.trunks == ["all"] else arguments.trunks
        found = compare_trunks(arguments.work, trunk_cases(names, arguments.variants), arguments.rounds)
        write_result("latency_all_trunks", trunks=found)
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    work: Path = arguments.work
    encoders = CLICK_ENCODERS if arguments.clicks else ENCODERS
    prepare(work, {name: ",".join(forms) for name, (_, _, forms) in encoders.items()} | DECODER_FORMS)
    if arguments.clicks:
        write_result("latency_clicks", **click_tables(work, arguments.rounds))
        return
    own = [(name, form) for name, (_, _, forms) in ENCODERS.items() for form in forms if len(forms) > 2]
    own += [("vit_b", "torch"), *([("vit_h", "torch")] if arguments.vit_h else [])]
    results = {
        "wall": once(work / "wall.json", lambda: interleaved(cases(work, encoders), arguments.rounds)),
        "processor": once(work / "processor.json", lambda: processor_time(cases(work, encoders))),
        "alone": once(work / "alone.json", lambda: {f"{n}/{f}": measure_alone(work, n, f) for n, f in own}),
    }
    results["wall"] = {key: statistics.median(values) for key, values in results["wall"].items()}
    write_result("latency_all", **report(work, results))
    if arguments.plot:
        plot(results["wall"], arguments.plot)


if __name__ == "__main__":
    main()
