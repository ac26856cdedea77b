# SPDX-License-Identifier: Apache-2.0
"""Programs of Debian packages: without one a test is skipped, unless the packages were unpacked for the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.orthanc import find_program, running_orthanc


def program(*paths: str) -> Path:
    try:
        return find_program(*paths)
    except FileNotFoundError as error:
        (pytest.fail if os.environ.get("KDSAM_DEBIAN") else pytest.skip)(str(error))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An empty Orthanc."""
    program("usr/sbin/Orthanc")
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> Path:
    return program("usr/lib/chromium/chromium", "usr/bin/chromium")
