# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest

from monai_kdsam.__main__ import main
from monai_kdsam.deploy import app_sdk


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """An environment with these packages and no others."""
    for package in ("monai/deploy", "holoscan", "highdicom", "nvidia/cu13/lib"):
        (tmp_path / package).mkdir(parents=True)
    for module in ("holoscan", "highdicom"):
        (tmp_path / module / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("monai/deploy", 'needs monai-deploy-app-sdk, .* pip install "monai-deploy-app-sdk==4.0.0"'),
        ("holoscan", 'needs holoscan, .* pip install "holoscan-cu13<4.3"'),
        ("highdicom", "needs highdicom, .* pip install"),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_installs_it(packages, folder, command):
    for file in (packages / folder).glob("*"):
        file.unlink()
    (packages / folder).rmdir()
    with pytest.raises(ValueError, match=command):
        app_sdk.prepare_app_sdk()


def test_a_missing_cuda_runtime_is_told_too(packages, monkeypatch):
    monkeypatch.setattr(app_sdk, "CUDA_RUNTIME", "libcudart.so.99")
    monkeypatch.setitem(app_sdk.INSTALL, "libcudart.so.99", "pip install nvidia-cuda-runtime")
    with pytest.raises(ValueError, match=r"needs libcudart\.so\.99, .* pip install nvidia-cuda-runtime"):
        app_sdk.prepare_app_sdk()


def test_the_command_tells_it_in_one_line(packages, capsys):
    (packages / "monai" / "deploy").rmdir()
    assert main(["deploy", "--input", "x", "--output", "y"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("monai_kdsam: error: `deploy` needs monai-deploy-app-sdk")
