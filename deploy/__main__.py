# SPDX-License-Identifier: Apache-2.0
"""Entry point of the packaged application; see docs/howto/deploy.md. Set here what your model segments."""

import os
import sys
from pathlib import Path

from monai_kdsam.__main__ import main

SETTINGS = ["--segment", "lesion"]

places = {name: os.environ[f"HOLOSCAN_{name.upper()}_PATH"] for name in ("input", "output", "model")}
arguments = [word for name, place in places.items() for word in (f"--{name}", place)]
prompts = Path(places["input"]) / "prompts.json"
if prompts.is_file():
    arguments += ["--prompts", str(prompts)]
sys.exit(main(["deploy", *arguments, *SETTINGS]))
