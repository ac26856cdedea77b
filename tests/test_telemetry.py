# SPDX-License-Identifier: Apache-2.0
"""Libraries that tell their makers of each use do not when they serve this package."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

# Names are asked for where a connection begins, in a forked process as well; the proxies' too.
PROGRAM = """
import socket, sys, time

def getaddrinfo(host, *arguments, **keywords):
    with open(sys.argv[1], "a") as file:
        print(host, file=file)
    raise OSError("no network here")

socket.getaddrinfo = getaddrinfo
"""
USES = {
    "mlflow": "import mlflow; mlflow.set_tracking_uri(sys.argv[2]); mlflow.create_experiment('one')",
    "openvino": "import openvino",
    "nncf": """
import nncf, numpy, openvino
from openvino import opset13
image = opset13.parameter([1, 3, 8, 8])
weight = numpy.ones((3, 3, 1, 1), dtype=numpy.float32)
model = openvino.Model([opset13.convolution(image, weight, [1, 1], [0, 0], [0, 0], [1, 1])], [image])
nncf.quantize(model, nncf.Dataset([numpy.zeros((1, 3, 8, 8), dtype=numpy.float32)]))
""",
}


@pytest.mark.parametrize("package", USES)
def test_no_library_asks_for_another_machine(package, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    program = f"{PROGRAM}\nimport monai_kdsam\n{USES[package]}\ntime.sleep(2)"
    # Under tests and in CI these libraries say nothing of themselves.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CI", "PYTEST", "GITHUB"))}
    environment |= {"HOME": str(tmp_path)}
    asked = tmp_path / "asked.txt"
    command = [sys.executable, "-c", program, str(asked), f"sqlite:///{tmp_path}/runs.db"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=120)
    assert not asked.exists(), asked.read_text()
    assert not (tmp_path / "intel").exists()  # a number by which they would know this machine again
