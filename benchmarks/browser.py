# SPDX-License-Identifier: Apache-2.0
"""What a student costs in a browser, in the onnxruntime-web that OHIF comes with: WebAssembly, one thread.

    python benchmarks/browser.py OHIF NAME=FOLDER ... [--runs 20]

OHIF is the folder `dist` of the npm package @ohif/app, FOLDER an export with `--layout sam`. Needs Playwright, and the
Chromium of Debian or of KDSAM_DEBIAN. The first run of each file does not count.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median

from machine import table, write_result
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hosts.chromium import FLAGS
from hosts.ohif import served_viewer
from hosts.orthanc import find_program, library_path

# As @cornerstonejs/ai opens the files and asks them.
MEASURE = """async runs => {
    Object.assign(ort.env.wasm, {wasmPaths: '/ort/', numThreads: 1});
    const options = {executionProviders: ['wasm'], enableMemPattern: false, enableCpuMemArena: false};
    const tensor = (shape, value) => new ort.Tensor(
        'float32', Float32Array.from({length: shape.reduce((a, b) => a * b)}, value), shape);
    const seconds = async (times, work) => {
        const found = [];
        for (let run = 0; run <= times; run++) {
            const begin = performance.now();
            await work();
            found.push((performance.now() - begin) / 1000);
        }
        return found.slice(1);
    };
    const begin = performance.now();
    const encoder = await ort.InferenceSession.create('/kdsam/encoder_browser.onnx', options);
    const decoder = await ort.InferenceSession.create('/kdsam/decoder.onnx', options);
    const load = (performance.now() - begin) / 1000;
    const picture = {input_image: tensor([1, 3, 1024, 1024], (_, i) => (i % 997) / 997)};
    const {image_embeddings} = await encoder.run(picture);
    const click = {
        image_embeddings,
        point_coords: tensor([1, 1, 2], () => 500),
        point_labels: tensor([1, 1], () => 1),
        mask_input: tensor([1, 1, 256, 256], () => 0),
        has_mask_input: tensor([1], () => 0),
        orig_im_size: tensor([2], () => 1024),
    };
    const encode = await seconds(Math.ceil(runs / 4), () => encoder.run(picture));
    return {load, encode, decode: await seconds(runs, () => decoder.run(click))};
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ohif", type=Path)
    parser.add_argument("students", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    rows = []
    with sync_playwright() as playwright:
        path = find_program("usr/lib/chromium/chromium", "usr/bin/chromium")
        environment = {**os.environ, **library_path()}
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, env=environment)
        for word in arguments.students:
            name, _, folder = word.partition("=")
            with served_viewer(arguments.ohif, Path(folder)) as address:
                page = browser.new_page()
                page.goto(f"{address}/silent-refresh.html")
                page.add_script_tag(url="/ort/ort.webgpu.min.js")
                found = page.evaluate(MEASURE, arguments.runs)
                page.close()
            sizes = [(Path(folder) / f"{part}.onnx").stat().st_size / 1e6 for part in ("encoder_browser", "decoder")]
            times = [found["load"], min(found["encode"]), median(found["encode"])]
            clicks = [1000 * min(found["decode"]), 1000 * median(found["decode"])]
            rows.append([name, *(f"{size:.1f}" for size in sizes), *(f"{time:.2f}" for time in times)])
            rows[-1] += [f"{click:.0f}" for click in clicks]
            print(*rows[-1], flush=True)
        version = browser.version
        browser.close()
    columns = ["", "encoder, MB", "decoder, MB", "load, s", "encode, least s", "median", "click, least ms", "median"]
    write_result("browser", costs=table(columns, rows))
    print(f"Chromium {version}")


if __name__ == "__main__":
    main()
