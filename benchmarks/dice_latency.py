# SPDX-License-Identifier: Apache-2.0
"""Dice of `study.py`'s trunks, over the seeds that all of them have, against the time of their 8-bit encoders.

python benchmarks/dice_latency.py STUDY WORK docs/images/dice_latency.png

STUDY is the OUT of study.py (arms "mse", which is ResNet-18, and "mse, TRUNK"), WORK the folder of
`latency.py --trunks`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from encoders import TRUNKS
from study_tables import JUDGED, over_sets, read_arms

PEERS = {"repvit_m1": "EdgeSAM's", "tiny_vit_5m_224": "MobileSAM's", "resnet18": "NanoSAM's"}
MEASURED = {"tiny_vit_5m_224": "mobilesam"}  # with MobileSAM's neck; the others with the neck `sam`


def main() -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    arms = read_arms(given.study / "scores")
    times = json.loads((given.work / "trunks.json").read_text())
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    trained = {trunk: arms.get("mse" if trunk == "resnet18" else f"mse, {trunk}") for trunk in TRUNKS}
    keys = {trunk: f"{MEASURED.get(trunk, f'{trunk}_1024_sam')}/ov_int8" for trunk in TRUNKS}
    shown = {trunk: arm for trunk, arm in trained.items() if arm is not None and keys[trunk] in times}
    seeds = set.intersection(*(arm.seeds for arm in shown.values()))
    if not seeds:
        parser.error("the trunks have no seed in common")
    print(f"seeds {sorted(seeds)}\n")
    print("| trunk | 8-bit encoder at 1024 px, ms | mean Dice | minus ResNet-18 |\n|---|---|---|---|")
    for trunk, arm in shown.items():
        milliseconds, (dice, low, high) = mean(times[keys[trunk]]), over_sets(arm, JUDGED, seeds=seeds)
        difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*over_sets(arm, JUDGED, arms["mse"], seeds))
        label = f"{TRUNKS[trunk]} ({PEERS[trunk]})" if trunk in PEERS else TRUNKS[trunk]
        print(f"| {label} | {milliseconds:.0f} | {dice:.3f} | {difference} |")
        color = "tab:orange" if trunk in PEERS else "tab:blue"
        axes.errorbar(milliseconds, dice, [[dice - low], [high - dice]], fmt="o", color=color, capsize=3)
        # On the right of its point where the left is another's.
        crowded = any(1 < milliseconds / mean(times[keys[other]]) < 1.2 for other in shown)
        place = (4 if crowded else -11, 0)
        axes.annotate(
            label, (milliseconds, dice), place, textcoords="offset points", rotation=90, va="center", fontsize=8
        )
    axes.set(
        xscale="log", xlabel="8-bit encoder at 1024 px, ms of one thread (log)", ylabel="mean Dice, students of 96 px"
    )
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    figure.savefig(given.picture, dpi=110)


if __name__ == "__main__":
    main()
