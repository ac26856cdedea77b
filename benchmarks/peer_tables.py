# SPDX-License-Identifier: Apache-2.0
"""The tables of benchmarks/peers.py, out of what it measured."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import latency
from machine import Table, table
from peer_models import OURS, PEERS, TRUNK_SIZE, TRUNKS, commit_of

Case = tuple[str, int]
BASE: Case = ("lite0", 256)  # what ships
SIZES = (256, 512, 1024)


class Measured:
    """Counts, medians and files of every case."""

    def __init__(self, work: Path, cases: dict[Case, tuple[str, ...]]) -> None:
        self.work, self.cases = work, cases
        times = json.loads((work / "times.json").read_text(encoding="utf-8"))
        self.medians = {key: statistics.median(values) for key, values in times.items()}
        self.once = json.loads((work / "alone.json").read_text(encoding="utf-8"))

    def ms(self, case: Case, form: str, kind: str = "encoder") -> float | None:
        """Median, None where that was not measured."""
        return self.medians.get(f"{case[0]}_{case[1]}/{form}/{kind}")

    def best(self, case: Case, kind: str = "encoder") -> float:
        """Of the fastest form."""
        return min(ms for form in self.cases[case] if (ms := self.ms(case, form, kind)) is not None)

    def facts(self, case: Case) -> dict[str, float]:
        return json.loads((self.work / f"{case[0]}_{case[1]}" / "facts.json").read_text(encoding="utf-8"))

    def megabytes(self, case: Case, form: str) -> float:
        return latency.megabytes(self.work / f"{case[0]}_{case[1]}", form)

    def native(self) -> list[Case]:
        """Those with a decoder, ours first."""
        return [case for case in self.cases if self.ms(case, "ort", "click") is not None]


def title(case: Case) -> str:
    name = case[0]
    return OURS[name][0] if name in OURS else PEERS[name].title if name in PEERS else TRUNKS[name]


def number(value: float | None) -> str:
    """Three digits."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def tables(work: Path, cases: dict[Case, tuple[str, ...]], checkouts: dict[str, Path]) -> dict[str, Table]:
    """All of them."""
    measured = Measured(work, cases)
    return {
        "peers": peers(checkouts),
        "encoders": encoders(measured),
        "sizes": sizes(measured),
        "clicks": clicks(measured),
        "whole": whole(measured),
        "trunks": trunks(measured),
        "limit": limit(measured),
        "aims": aims(measured),
    }


def peers(checkouts: dict[str, Path]) -> Table:
    rows = []
    for name, checkout in checkouts.items():
        peer = PEERS[name]
        more = ", ".join(map(str, peer.more)) or "none"
        rows.append([peer.title, peer.repository, f"`{commit_of(checkout)[:12]}`", peer.license, peer.size, more])
    return table(["peer", "repository", "commit", "license of its code", "its size, px", "other sizes timed"], rows)


def encoders(measured: Measured) -> Table:
    rows = []
    for case in measured.native():
        facts = measured.facts(case)
        counts = [f"{facts['parameters'] / 1e6:.1f}", number(facts["macs"] / 1e9)]
        counts.append(number(measured.megabytes(case, "ov_int8")))
        cells = [number(measured.ms(case, form)) for form in measured.cases[case]]
        rows.append([title(case), case[1], *counts, *cells, number(measured.best(case) / measured.best(BASE))])
    forms = [latency.FORMS[form] for form in measured.cases[BASE]]
    columns = ["parameters, M", "products, billions", "file in 8 bits, MB", *forms, "fastest over Lite0's at 256 px"]
    return table(["encoder, ms an image", "px", *columns], rows)


def sizes(measured: Measured) -> Table:
    """Encoders in 8 bits at the same sizes, and over ours there."""
    rows = []
    for name in ("lite0", *(name for name in PEERS if (name, PEERS[name].size) in measured.cases)):
        cells = []
        for size in SIZES:
            ms, ours = (measured.ms((one, size), "ov_int8") for one in (name, "lite0"))
            cells.append("-" if ms is None else number(ms) if name == "lite0" else f"{number(ms)} ({ms / ours:.2g})")
        rows.append([title((name, 0)), *cells])
    return table(["encoder in 8 bits, OpenVINO, ms (over ours)", *(f"{size} px" for size in SIZES)], rows)


def clicks(measured: Measured) -> Table:
    rows = []
    for case in measured.native():
        facts = measured.facts(case)
        counts = [f"{facts['click_parameters'] / 1e6:.1f}", number(facts["click_macs"] / 1e9)]
        cells = [number(measured.ms(case, form, "click")) for form in ("torch", "ort", "ov")]
        ratio = measured.best(case, "click") / measured.best(BASE, "click")
        rows.append([title(case), case[1], *counts, *cells, number(ratio)])
    columns = ["PyTorch", "ONNX Runtime", "OpenVINO", "fastest over Lite0's at 256 px"]
    return table(["a click (one box), ms", "px", "parameters, M", "products, billions", *columns], rows)


def whole(measured: Measured) -> Table:
    """Picture and box to mask; ours also with the close-up that it has by itself."""
    rows = []
    forms = ("torch", "ort", "ov_int8")
    for case in measured.native():
        kinds = ["whole"] + (["close_up"] if measured.ms(case, "ort", "close_up") is not None else [])
        for kind in kinds:
            cells = [number(measured.ms(case, form, kind)) for form in forms]
            ratio = number(measured.best(case, kind) / measured.best(BASE, "whole"))
            once = [measured.once[f"{case[0]}_{case[1]}/{form}"] for form in ("ort", "ov_int8")]
            more = [f"{one['first']:.1f}" for one in once] + [f"{one['peak']:.0f}" for one in once]
            name = f"{title(case)}, with its close-up, as it ships" if kind == "close_up" else title(case)
            rows.append([name, case[1], *cells, ratio, *(more if kind == "whole" else ["-"] * 4)])
    columns = ["PyTorch", "ONNX Runtime fp32", "OpenVINO, encoder in 8 bits", "fastest over Lite0's at 256 px"]
    alone = [f"{what}, {where}" for what in ("first mask, s", "peak memory, MiB") for where in ("ort", "ov 8 bits")]
    return table(["a whole case, ms", "px", *columns, *alone], rows)


def trunks(measured: Measured) -> Table:
    rows = []
    for name in TRUNKS:
        case = (name, TRUNK_SIZE)
        facts = measured.facts(case)
        counts = [f"{facts['parameters'] / 1e6:.1f}", f"{facts['macs'] / 1e9:.2f}"]
        counts.append(number(measured.megabytes(case, "ov_int8")))
        rows.append([TRUNKS[name], *counts, *(number(measured.ms(case, form)) for form in ("ov", "ov_int8"))])
    columns = [
        "parameters, M",
        "products, billions",
        "file in 8 bits, MB",
        latency.FORMS["ov"],
        latency.FORMS["ov_int8"],
    ]
    return table([f"our student's encoder on other trunks, {TRUNK_SIZE} px, ms", *columns], rows)


def limit(measured: Measured) -> Table:
    """What the encoders would take at the rate of this library's products of matrices."""
    case = ("gemm", 1024)
    products = measured.facts(case)["macs"] / 1e6  # millions: over ms, billions a second
    rates = {form: products / ms for form in ("ov", "ov_int8") if (ms := measured.ms(case, form))}
    rows: list[list[Any]] = [["the products of matrices", number(products / 1e3), *_rates(rates), "-", "-", "-"]]
    for case in measured.cases:
        if (case[1] == 1024 and case[0] != "gemm") or case == BASE:
            macs, ms = measured.facts(case)["macs"] / 1e6, measured.ms(case, "ov_int8")
            found = {form: macs / one for form in rates if (one := measured.ms(case, form))}
            least = macs / rates["ov_int8"]
            cells = [number(least), number(ms), f"{ms / least:.2g}" if ms else "-"]
            rows.append([f"{title(case)}, {case[1]} px", number(macs / 1e3), *_rates(found), *cells])
    columns = ["billions a second, fp32", "INT8", "limit in INT8, ms", "measured, ms", "times the limit"]
    return table([f"OpenVINO, {len(os.sched_getaffinity(0))} cores", "products, billions", *columns], rows)


def _rates(found: dict[str, float]) -> list[str]:
    return [number(found.get(form)) for form in ("ov", "ov_int8")]


def aims(measured: Measured) -> Table:
    rows = []
    for size in SIZES:
        ours, theirs = measured.ms(("lite0", size), "ov_int8"), measured.ms(("edgesam", size), "ov_int8")
        if ours and theirs:
            name = f"our Lite0 over EdgeSAM, encoders in 8 bits, {size} px"
            rows.append([name, "1 or less", f"{ours / theirs:.2g}"])
    products, ms = measured.facts(("gemm", 1024))["macs"], measured.ms(("gemm", 1024), "ov_int8")
    resnet = measured.ms(("resnet50", 1024), "ov_int8")
    if ms and resnet:
        least = measured.facts(("resnet50", 1024))["macs"] * ms / products
        rows.append(["our ResNet-50 in 8 bits, 1024 px, over its limit", "2 or less", f"{resnet / least:.2g}"])
    return table(["ratio", "aim", "measured"], rows)
