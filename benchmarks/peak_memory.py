# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a benchmark's process, on Linux."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mib() -> float:
    """Peak of this process in MiB.

    Not `getrusage`: its peak survives exec, so a child would report that of the process which started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10
