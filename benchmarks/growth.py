# SPDX-License-Identifier: Apache-2.0
"""What a unit of work costs as work grows: pictures to distill, megapixels, slices, clients, studies without a label.

    python benchmarks/growth.py [distill pictures volumes clients studies] [--plot docs/images/growth.svg]

in the environment of the extra `label`. Everything is generated; the student is the one that ships, but in `distill`,
where it starts anew at 64 pixels with a tiny teacher of random weights. What is chosen replaces its tables in
`results/growth.json`, the others stay. Processor time is that of the process which works, the server's for clients and
studies: other work on the machine hardly changes it.

- distill: the phases `embed` and `distill`, cached and live, one epoch, with their start
- pictures: the command `segment`, from the file to the mask and the overlay; memory is the process's peak
- volumes: slices of 256 x 256, each on its own, and from a box on the middle one to all of them
- clients: at once on one server, each with images and prompts drawn at random; every mask is compared with a direct one
- studies: pictures in a server's folder, none with a label; the start, and what clients ask of it
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests
from docs_tables import RESULTS
from machine import Table, peak_mib, table, write_result
from PIL import Image

from monai_kdsam.bundles import bundle_path, copy_bundle
from monai_kdsam.data.phantoms import make_phantom, write_phantoms
from monai_kdsam.inferers import BundlePredictor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hosts.label_server import LabelServer, running_server

SIZES: dict[str, list[float]] = {
    "distill": [32, 128, 512],
    "pictures": [0.1, 1, 10, 100],
    "volumes": [10, 100, 300, 1000],
    "clients": [1, 4, 16],
    "studies": [10, 100, 1000, 10000],
}
REQUESTS, REPEATS, SCORED = 64, 3, 16
Point = dict[str, float]


def processor_seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def alone(kind: str, size: float) -> Point:
    """A point in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--point", kind, str(size)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def distill(folder: Path, size: float) -> Point:
    import torch

    from monai_kdsam.networks import build_teacher
    from monai_kdsam.phases import run_phase

    torch.save(build_teacher("vit_micro", image_size=64).state_dict(), folder / "teacher.pt")

    def run(count: int) -> Iterator[tuple[str, float]]:
        settings = {"image_size": 64, "teacher": "vit_micro", "teacher_checkpoint": folder / "teacher.pt"}
        bundle = copy_bundle(folder / f"of_{count}", settings={"image_size": 64})
        settings |= {"dataset_dir": write_phantoms(folder / f"pictures_{count}", per_kind=count // 2, size=72)}
        settings |= {"progress": False, "num_workers": 0}
        yield "embed", processor_seconds(lambda: run_phase(bundle, "embed", "offline", **settings))
        settings |= {"epochs": 1, "overwrite": True, "batch_size": 8}
        for way in ("cached", "live"):
            given = settings | {"cached_embeddings": way == "cached"}
            yield way, processor_seconds(lambda given=given: run_phase(bundle, "distill", "offline", **given))

    dict(run(8))  # imports
    return dict(run(int(size)))


def pictures(folder: Path, size: float) -> Point:
    from monai_kdsam.segment import segment

    def write(name: str, megapixels: float) -> Path:
        side = round((megapixels * 1e6) ** 0.5)
        Image.fromarray(make_phantom("polyp", size=512, seed=0)[0]).resize((side, side)).save(folder / name)
        return folder / name

    segment(write("first.png", 0.1), folder / "masks")
    picture, start, before = write("picture.png", size), time.perf_counter(), peak_mib()
    processor = processor_seconds(lambda: segment(picture, folder / "masks"))
    return {"seconds": time.perf_counter() - start, "processor": processor, "before": before, "peak": peak_mib()}


def volumes(folder: Path, size: float) -> Point:
    """Tubes along the slices, with noise of each slice's own."""
    import nibabel

    predict = BundlePredictor(bundle_path("kdsam_deepgrow_3d"))
    picture, mask = make_phantom("breast_lesion", size=256, seed=3)
    mean = np.zeros((256, 256), np.float32)
    mean[: picture.shape[0], : picture.shape[1]] = picture.mean(axis=2)
    random, depth = np.random.default_rng(0), int(size)

    def write(name: str, depth: int) -> Path:
        slices = [np.clip(mean.T + random.normal(0, 4, mean.shape), 0, 255).astype(np.uint8) for _ in range(depth)]
        nibabel.save(nibabel.Nifti1Image(np.stack(slices, axis=-1), np.eye(4)), folder / name)
        return folder / name

    predict(write("first.nii", 3))
    one, other = write("one.nii", depth), write("other.nii", depth)  # slices that were seen are remembered
    before = peak_mib()
    found = {"each": processor_seconds(lambda: predict(one)), "before": before}
    j, i = np.nonzero(mask)
    box = [int(edge) for edge in (i.min(), i.max(), j.min(), j.max())]
    answers: list[Any] = []
    ask = {"roi": [*box, depth // 2, depth // 2], "propagate": True}
    found["box"] = processor_seconds(lambda: answers.append(predict(other, **ask)))
    return found | {"reached": int(answers[0].any(axis=(0, 1)).sum()), "peak": peak_mib()}


def clients(folder: Path, sizes: Sequence[float]) -> list[Point]:
    """All on one server, which has answered as many requests before."""
    from label import PROMPTS, Load, write_pictures

    bundle = copy_bundle(folder, settings={"go_on": False})
    images = write_pictures(folder / "studies", 8, 256)
    predict, points = BundlePredictor(bundle), []
    asked = [(image, number) for image in images for number in range(len(PROMPTS))]
    expected = {(image, n): predict(folder / "studies" / f"{image}.png", **PROMPTS[n]) for image, n in asked}
    with running_server(bundle, folder / "studies", folder / "server") as server:
        for count in [sizes[0], *sizes]:
            load, each = Load(server, expected, REQUESTS), max(REQUESTS // int(count), 1)
            start, before = time.perf_counter(), server.processor_seconds()
            with ThreadPoolExecutor(int(count)) as pool:
                list(pool.map(load.run, range(int(count)), [each] * int(count)))
            wall, processor = time.perf_counter() - start, server.processor_seconds() - before
            if load.errors or load.wrong:
                raise SystemExit(f"{count} clients: {load.errors} errors, {load.wrong} wrong masks")
            points.append({"seconds": float(np.median(load.times)), "rate": load.done / wall})
            points[-1] |= {"processor": processor / load.done, "memory": server.memory() / 2**20}
    return points[1:]


def studies(folder: Path, sizes: Sequence[float]) -> list[Point]:
    from monai_kdsam.label.active_learning import UncertaintyScoring
    from monai_kdsam.label.studies import StudiesDatastore

    bundle, points = copy_bundle(folder), []
    for size in sizes:
        place = folder / f"of_{int(size)}"
        (place / "studies").mkdir(parents=True)
        for number in range(int(size)):
            Image.fromarray(np.full((64, 64), number % 251, np.uint8)).save(place / "studies" / f"{number:06d}.png")
        begin = time.perf_counter()
        with running_server(bundle, place / "studies", place / "server") as server:
            point = {"start": time.perf_counter() - begin, "processor": server.processor_seconds()}
            time.sleep(3)  # the server answers before its start has ended
            point |= requests_of(server)
            point["memory"] = server.memory() / 2**20
        store = StudiesDatastore(str(place / "studies"), extensions=("*.png",), auto_reload=False)
        scoring = UncertaintyScoring(bundle)
        scoring({"max_samples": 1}, store)
        begin = time.process_time()
        done = scoring({"max_samples": SCORED}, store)  # of few studies fewer are left
        point["scored"] = (time.process_time() - begin) / done["executed"]
        points.append(point)
    return points


def requests_of(server: LabelServer) -> Point:
    """Processor seconds of the server for each of what a client asks."""
    asked = {
        "info": ("get", "/info/"),
        "status": ("get", "/datastore/"),
        "list": ("get", "/datastore/?output=all"),
        "random": ("post", "/activelearning/random"),
        "next": ("post", "/activelearning/uncertainty"),
    }
    found = {}
    for name, (method, path) in asked.items():
        before = server.processor_seconds()
        for _ in range(REPEATS):
            requests.request(method, f"{server.address}{path}", timeout=300).raise_for_status()
        found[name] = (server.processor_seconds() - before) / REPEATS
    return found


def further(sizes: Sequence[float], costs: Sequence[float]) -> list[float]:
    """What a further unit costs: the difference to the size before, which has the same start."""
    rises = np.diff(costs) / np.diff(sizes)
    return [costs[0] / sizes[0], *rises.tolist()]


# Of each kind: the columns, and a function of sizes and points which gives their figures.
def rows_of(kind: str, sizes: Sequence[float], points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    every = {name: np.array([point[name] for point in points]) for name in points[0]}
    number = np.array(sizes)
    if kind == "distill":
        ways = ("embed", "cached", "live")
        names = [f"{way}, ms" for way in ways] + [f"{way}, a further one" for way in ways]
        figures = [1000 * every[way] / number for way in ways]
        figures += [1000 * np.array(further(sizes, every[way])) for way in ways]
        return ["pictures", *names], _texts(sizes, figures, "{:.1f}")
    if kind == "pictures":
        names = ["megapixels", "seconds", "processor seconds", "of them a megapixel", "peak memory, MiB", "a megapixel"]
        figures = [every["seconds"], every["processor"], every["processor"] / number, every["peak"]]
        figures += [(every["peak"] - every["before"]) / number]
        return names, _texts(sizes, figures, "{:.2f}", "{:.2f}", "{:.2f}", "{:.0f}", "{:.0f}")
    if kind == "volumes":
        names = ["slices", "each on its own, ms a slice", "from a box, ms a slice reached", "slices reached"]
        figures = [1000 * every["each"] / number, 1000 * every["box"] / every["reached"], every["reached"]]
        figures += [every["peak"], (every["peak"] - every["before"]) / number]
        return [*names, "peak memory, MiB", "a slice"], _texts(
            sizes, figures, "{:.1f}", "{:.1f}", "{:.0f}", "{:.0f}", "{:.2f}"
        )
    if kind == "clients":
        names = ["clients", "seconds a request, median", "requests a second", "processor ms a request", "memory, MiB"]
        figures = [every["seconds"], every["rate"], 1000 * every["processor"], every["memory"]]
        return names, _texts(sizes, figures, "{:.2f}", "{:.1f}", "{:.0f}", "{:.0f}")
    names = ["studies", "start, seconds", "of the processor", "`/info`, ms", "`/datastore`, ms", "its list, ms"]
    names += ["next, random, ms", "next, least sure, ms", "scoring, ms an image", "memory, MiB"]
    asked = ("info", "status", "list", "random", "next", "scored")
    figures = [every["start"], every["processor"], *(1000 * every[name] for name in asked), every["memory"]]
    return names, _texts(sizes, figures, "{:.1f}", "{:.1f}", *["{:.0f}"] * 7)


def _texts(sizes: Sequence[float], figures: Sequence[np.ndarray], *forms: str) -> list[list[str]]:
    forms = forms if len(forms) > 1 else forms * len(figures)
    columns = [[form.format(value) for value in column] for form, column in zip(forms, figures, strict=True)]
    return [[f"{size:g}", *cells] for size, *cells in zip(sizes, *columns, strict=True)]


def measure(kind: str, sizes: Sequence[float]) -> Table:
    if kind in ("clients", "studies"):
        with tempfile.TemporaryDirectory() as folder:
            points = {"clients": clients, "studies": studies}[kind](Path(folder), sizes)
    else:
        points = [alone(kind, size) for size in sizes]
    return table(*rows_of(kind, sizes, points))


def read_table(file: str, name: str) -> Table:
    return json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))["tables"][name]


def plot(file: Path) -> None:
    """A panel for each kind of growth, of what stands in results; prompts are those of `latency.py --prompts`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "growth", "font.family": "sans-serif"}
    # table, columns of it, what they share
    panels = [
        ("distill", [1, 2, 3], "processor ms a picture"),
        ("pictures", [3], "processor seconds a megapixel"),
        ("prompts", [1, 2], "processor ms a prompt"),
        ("volumes", [1, 2], "processor ms a slice"),
        ("clients", [3], "processor ms a request"),
        ("studies", [3, 7, 8], "processor ms"),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), layout="constrained")
    for axis, (name, columns, label) in zip(axes.flat, panels, strict=True):
        stored = (
            read_table("latency_prompts", "prompts_of_one_thread") if name == "prompts" else read_table("growth", name)
        )
        sizes = [float(row[0]) for row in stored["rows"]]
        for column in columns:
            values = [float(row[column].split()[0]) for row in stored["rows"]]
            values = [v / s for v, s in zip(values, sizes, strict=True)] if name == "prompts" else values
            axis.plot(sizes, values, "o-", label=stored["columns"][column].replace("of them a", "a"))
        axis.set(xscale="log", xlabel=name, title=label)
        axis.set_ylim(0, 1.08 * axis.dataLim.y1)  # from 0, so that what is flat looks flat
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.title.set_fontsize(10)
        axis.legend(fontsize=6)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(SIZES)}; all by default")
    parser.add_argument("--plot", type=Path, help="picture of all that stands in results")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.point:
        kind, size = given.point
        with tempfile.TemporaryDirectory() as folder:
            measured = {"distill": distill, "pictures": pictures, "volumes": volumes}[kind](Path(folder), float(size))
        print(json.dumps(measured))
        return
    file = RESULTS / "growth.json"
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"] if file.exists() else {}
    for kind in given.kinds or SIZES:
        tables[kind] = measure(kind, SIZES[kind])
        write_result("growth", **tables)
    if given.plot:
        plot(given.plot)


if __name__ == "__main__":
    main()
