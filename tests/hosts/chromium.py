# SPDX-License-Identifier: Apache-2.0
"""How the tests run Chromium."""

from __future__ import annotations

# WebGL in software, and nothing that asks the Internet.
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
