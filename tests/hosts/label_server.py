# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_kdsam label` as a process, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
from monai.utils import ensure_tuple

from monai_kdsam.bundles import copy_bundle
from monai_kdsam.networks import build_student

MODEL = "kdsam_deepgrow_2d"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class LabelServer:
    """A server that runs; `post` is the request that every client makes."""

    address: str
    bundle: Path
    studies: Path | str
    process: subprocess.Popen[bytes]
    log: Path

    def post(
        self,
        image: str = "",
        params: Any = None,
        file: tuple[str, bytes] | None = None,
        *,
        model: str = MODEL,
        **query: str,
    ) -> requests.Response:
        return requests.post(
            f"{self.address}/infer/{model}",
            params={"image": image, **query},
            data={"params": params if isinstance(params, str) else json.dumps(params or {})},
            files={"file": file} if file else None,
            timeout=120,
        )

    def memory(self) -> int:
        """Resident bytes of the process, on Linux."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """What the process has used of the processors, on Linux; not what it started."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def random_bundle(
    folder: Path, backbone: str, image_size: int, seed: int = 0, name: str = MODEL, *, go_on: bool = False
) -> Path:
    """A copy of a bundle with random weights, which answer each prompt with a mask of its own."""
    settings = {"backbone": backbone, "image_size": image_size, "prompt_map": False, "fine_features": False}
    settings |= {"go_on": go_on}
    bundle = copy_bundle(folder, name, settings=settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(build_student(backbone, image_size=image_size).state_dict(), bundle / "models" / "model.pt")
    return bundle


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def label_command(given: dict[str, object]) -> dict[str, Any]:
    """Arguments of `subprocess` for the command of this checkout."""
    words = [str(word) for key, value in given.items() for word in (key, *ensure_tuple(value))]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "monai_kdsam", "label", *words]
    return {"args": command, "env": os.environ | {"PYTHONPATH": paths}}


@contextmanager
def running_server(bundle: Path, studies: Path | str, folder: Path, *others: Path) -> Iterator[LabelServer]:
    """Start the server on a bundle, or several, wait until it answers, and stop it at the end."""
    port, log = free_port(), folder / "server.log"
    folder.mkdir(parents=True, exist_ok=True)
    given = {"--studies": studies, "--model": (bundle, *others), "--port": port, "--dir": folder / "label"}
    with log.open("wb") as stream:
        process = subprocess.Popen(**label_command(given), stdout=stream, stderr=subprocess.STDOUT, cwd=folder)
    server = LabelServer(f"http://127.0.0.1:{port}", bundle, studies, process, log)
    try:
        _wait(server)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(server: LabelServer, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if requests.get(f"{server.address}/info/", timeout=30).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise RuntimeError(f"The server did not start:\n{server.log.read_text(errors='replace')[-4000:]}")
