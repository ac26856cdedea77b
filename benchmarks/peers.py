# SPDX-License-Identifier: Apache-2.0
"""The peers' own code beside ours, in one interleaved run on this machine's CPU.

    pip install -e ".[export]" timm
    python benchmarks/peers.py --work /tmp/peers --mobilesam DIR --edgesam DIR --nanosam DIR --litemedsam DIR
        --efficientvit DIR [--rounds 3]

DIR is a checkout that you have fetched (repositories and commits: the table `peers` of results/peers.json); any may be
left out. Its own classes are built with random weights, for time does not depend on them. Packages that a checkout
imports without using them here are replaced by empty ones where they are missing.

Every network is exported and brought to 8 bits in the same way, by our export's settings, loaded, warmed up and timed
in turns, so that what else the machine does falls on all alike; medians are compared. A whole case is a picture of
1280 x 1024 that is resized, normalized and encoded, one box, and the mask at the picture's size; preparing and
enlarging are our runtime's for all. Start-up and peak memory are those of a process that does one case. The limit is
what products of matrices, quantized and run by the same library, reach. Models are kept in `--work`.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import latency
import numpy as np
from machine import peak_mib, write_result

ALL = ("torch", "ort", "ov", "ort_int8", "ov_int8")
SOME = ("ov", "ov_int8")
WHOLE = ("torch", "ort", "ov_int8")
PICTURE = (1024, 1280)
NAMES = ("mobilesam", "edgesam", "nanosam", "litemedsam", "efficientvit")
Case = tuple[str, int]  # name, side of the input in pixels
Times = dict[str, list[float]]


def all_cases(checkouts: dict[str, Path]) -> dict[Case, tuple[str, ...]]:
    """Forms of each."""
    from peer_models import OURS, PEERS, TRUNK_SIZE, TRUNKS

    cases: dict[Case, tuple[str, ...]] = {(name, size): ALL for name, (_, _, sizes) in OURS.items() for size in sizes}
    cases |= {(name, TRUNK_SIZE): SOME for name in TRUNKS if name not in OURS} | {("gemm", 1024): ALL[1:]}
    cases |= {(name, PEERS[name].size): ALL for name in checkouts}
    return cases | {(name, size): SOME for name in checkouts for size in PEERS[name].more}


def folder_of(work: Path, case: Case) -> Path:
    return work / f"{case[0]}_{case[1]}"


def build(work: Path, case: Case, forms: tuple[str, ...], checkouts: dict[str, Path]) -> None:
    """Files of one network, and what is counted of it."""
    import peer_models
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    name, size = case
    folder = folder_of(work, case)
    folder.mkdir(parents=True, exist_ok=True)
    encoder, decoder = peer_models.build(name, size, checkouts)
    image = torch.from_numpy(latency.pictures(size, 1)[0])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedding = encoder(image)
    facts = {"macs": counter.get_total_flops() / 2, "parameters": _count(encoder)}
    latency.build_forms(folder, encoder, size, list(forms))
    exported = torch.from_numpy(latency.load(folder, "ov")(image.numpy())[0])
    if (off := float((exported - embedding).norm() / embedding.norm())) > 0.01:
        raise SystemExit(f"{name}: the exported encoder differs by {off:.1%} from the checkout's.")
    if forms == ALL:  # clicks and whole cases are those of the sizes that networks are meant for
        examples = peer_models.box_inputs(name, size, decoder, embedding)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            decoder(*examples)
        facts |= {"click_macs": counter.get_total_flops() / 2, "click_parameters": _count(decoder)}
        part = folder / "decoder"
        part.mkdir(exist_ok=True)
        names = ["embedding", "points", "labels", "mask_input", "has_mask_input"][: len(examples)]
        latency.to_graphs(part, decoder, examples, names)
        np.savez(part / "prompt.npz", *(example.numpy() for example in examples[1:]))
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    print(f"built {name}, {size} px", flush=True)


def _count(module) -> int:
    # A student's decoder holds the whole of it.
    part = getattr(module, "network", None)
    modules = [module] if part is None else [part.prompt_encoder, part.mask_decoder]
    return sum(parameter.numel() for one in modules for parameter in one.parameters())


class Opened:
    """A network in one form: encoder and decoder as functions of arrays."""

    def __init__(self, work: Path, case: Case, form: str, checkouts: dict[str, Path]) -> None:
        folder = folder_of(work, case)
        self.size = case[1]
        self.prompt: list[np.ndarray] = []
        if form == "torch":
            self.encode, self.decode = _in_torch(case, checkouts)
        else:
            self.encode = latency.load(folder, form)
        if (folder / "decoder" / "prompt.npz").exists():
            self.prompt = [*np.load(folder / "decoder" / "prompt.npz").values()]
            if form != "torch":
                self.decode = latency.load(folder / "decoder", form.removesuffix("_int8"))

    def whole(self, picture: np.ndarray, views: int = 1) -> np.ndarray:
        """A mask of a picture (H, W, 3) and one box; a close-up is a second view."""
        from monai_kdsam.rgb import fit_longest, resize_pixels
        from monai_kdsam.runtime.resampling import resampling_matrix, resize

        inner = fit_longest(*picture.shape[:2], self.size)
        for _ in range(views):
            padded = np.zeros((1, 3, self.size, self.size), dtype=np.float32)
            padded[0, :, : inner[0], : inner[1]] = resize_pixels(picture.transpose(2, 0, 1), *inner)
            padded -= 110
            padded /= 58
            (embedding,) = self.encode(padded)
        small = self.decode(embedding, *self.prompt)[0]
        rows, columns = (
            resampling_matrix(cut, full) @ resampling_matrix(small.shape[-1], self.size)[:cut]
            for cut, full in zip(inner, picture.shape, strict=False)
        )
        return resize(small[:, 0], rows, columns) > 0


def _in_torch(case: Case, checkouts: dict[str, Path]):
    import peer_models
    import torch

    encoder, decoder = peer_models.build(*case, checkouts)
    encoder = encoder.to(memory_format=torch.channels_last)

    def run(part, *arrays):
        with torch.no_grad():
            found = part(*(torch.from_numpy(array) for array in arrays))
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else (found,))]

    return (lambda *arrays: run(encoder, *arrays)), (lambda *arrays: run(decoder, *arrays))


def picture() -> np.ndarray:
    """RGB noise: no network's time depends on what it shows."""
    return np.random.default_rng(0).integers(0, 256, (*PICTURE, 3), dtype=np.uint8)


def measure(work: Path, case: Case, form: str, checkouts: dict[str, Path]) -> dict[str, list[float]]:
    """Milliseconds of an image, of a click and of whole cases."""
    network = Opened(work, case, form, checkouts)
    image = latency.pictures(case[1], 1)[0]
    (embedding,) = network.encode(image)
    work_of = {"encoder": (2, lambda: network.encode(image))}
    if network.prompt:
        network.decode(embedding, *network.prompt)
        work_of["click"] = (3, lambda: network.decode(embedding, *network.prompt))
    if network.prompt and form in WHOLE:
        shown = picture()
        work_of["whole"] = (1, lambda: network.whole(shown))
        if case == ("lite0", 256):
            work_of["close_up"] = (1, lambda: network.whole(shown, 2))
    found: dict[str, list[float]] = {}
    for kind, (count, call) in work_of.items():
        for _ in range(count):
            begin = time.perf_counter()
            call()
            found.setdefault(kind, []).append(1000 * (time.perf_counter() - begin))
    return found


def interleaved(work: Path, cases: dict[Case, tuple[str, ...]], checkouts: dict[str, Path], rounds: int) -> Times:
    """Of every case in turn, by NAME_SIZE/FORM/KIND."""
    measured: Times = {}
    for round_ in range(rounds):
        for case, forms in cases.items():
            for form in forms:
                try:
                    found = measure(work, case, form, checkouts)
                except Exception as error:  # of each runtime its own: what it does not take is a dash in the table
                    print(f"{case[0]}, {case[1]} px, {latency.FORMS[form]}: {error}", flush=True)
                    continue
                for kind, values in found.items():
                    measured.setdefault(f"{case[0]}_{case[1]}/{form}/{kind}", []).extend(values)
                gc.collect()
        print(f"round {round_ + 1} of {rounds}", flush=True)
    return measured


def alone(work: Path, case: Case, form: str) -> None:
    """Time to the first mask and peak memory of this process, to stdout as JSON."""
    begin = time.perf_counter()
    Opened(work, case, form, {}).whole(picture())
    print(json.dumps({"first": time.perf_counter() - begin, "peak": peak_mib()}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models and the raw numbers")
    for name in NAMES:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="its checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def case_of(text: str) -> Case:
    name, _, size = text.rpartition("_")
    return name, int(size)


def main() -> None:
    given = parse()
    work: Path = given.work.resolve()
    checkouts = {name: path.resolve() for name in NAMES if (path := getattr(given, name))}
    if given.alone:
        alone(work, case_of(given.alone[0]), given.alone[1])
        return
    cases = all_cases(checkouts)
    if given.build:
        warnings.simplefilter("ignore")
        for case in map(case_of, given.build):
            build(work, case, cases[case], checkouts)
        return
    missing = [f"{name}_{size}" for name, size in cases if not (work / f"{name}_{size}" / "facts.json").exists()]
    if missing:  # in a process of its own, to give its memory back
        subprocess.run([sys.executable, *sys.argv, "--build", *missing], check=True)
    times = interleaved(work, cases, checkouts, given.rounds)
    (work / "times.json").write_text(json.dumps(times, indent=1), encoding="utf-8")
    once = {}
    for case, forms in cases.items():
        for form in WHOLE[1:] if forms == ALL else ():
            name = f"{case[0]}_{case[1]}"
            command = [sys.executable, "-W", "ignore", __file__, "--work", str(work), "--alone", name, form]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            once[f"{name}/{form}"] = json.loads(output.splitlines()[-1])
    (work / "alone.json").write_text(json.dumps(once, indent=1), encoding="utf-8")
    from peer_tables import tables

    write_result("peers", **tables(work, cases, checkouts))


if __name__ == "__main__":
    main()
