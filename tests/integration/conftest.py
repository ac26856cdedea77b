# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hosts.orthanc import running_orthanc


@pytest.fixture(scope="module")
def archive(program, tmp_path_factory):
    """An empty Orthanc."""
    program("usr/sbin/Orthanc")
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running
