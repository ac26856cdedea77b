# SPDX-License-Identifier: Apache-2.0
"""What is built out of the tree is what is in the tree."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import monai_kdsam
from monai_kdsam.bundles import bundle_path, config_path

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = {"models", "output", "eval", "mlruns", "__pycache__"}
STUDENT = {f"bundles/kdsam_deepgrow_2d/models/{name}" for name in ("model.pt", "model.json")}
needs_build = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("build", "setuptools")),
    reason="building without a download needs the packages build and setuptools",
)


def tree(folder):
    """Files below a folder of the project, but for what runs leave there."""
    files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {path.as_posix() for path in files if not any(p in NOT_SHIPPED or p.startswith(".") for p in path.parts)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project copied, with leftovers of a run that must not be shipped."""
    folder = tmp_path_factory.mktemp("project") / "copy"
    left_out = (
        ".git",
        ".*_cache",
        ".nox",
        ".venv",
        "venv",
        "build",
        "dist",
        "*.egg-info",
        "kdsam_demo",
        "kdsam_segmented",
        *NOT_SHIPPED,
    )
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left_out))
    for shipped in STUDENT:
        path = folder / shipped
        path.parent.mkdir(exist_ok=True)
        path.write_text("a student")
    for leftover in ("models/teacher.pt", "models/previous.pt", "output/split.json", "configs/__pycache__/x.pyc"):
        path = folder / "bundles" / "kdsam_deepgrow_2d" / leftover
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    stale = folder / "build/lib/monai_kdsam/_configs/stale.yaml"
    stale.parent.mkdir(parents=True)
    stale.touch()
    return folder


@pytest.fixture(scope="module")
def dist(copy):
    """The folder of wheel and sdist; the nox session `wheel` goes on with the one that KDSAM_DIST names."""
    folder = Path(os.environ.get("KDSAM_DIST") or copy / "dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(copy),
    ]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "SetuptoolsDeprecationWarning" not in run.stdout + run.stderr, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    return zipfile.ZipFile(next(dist.glob("*.whl")))


@needs_build
def test_the_wheel_holds_the_package_every_bundle_and_every_overlay_and_nothing_else(wheel):
    expected = {name for name in tree("monai_kdsam") if name.endswith((".py", ".j2"))} | {"monai_kdsam/py.typed"}
    expected |= {f"monai_kdsam/_{name}" for name in tree("bundles") | tree("configs") | STUDENT}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


@needs_build
def test_the_wheel_holds_the_license(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
    assert wheel.read(name).decode() == (ROOT / "LICENSE").read_text()


@needs_build
def test_bundles_and_overlays_are_found_in_an_installed_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "from monai_kdsam.bundles import *; print(bundle_path()); print(config_path('smoke.yaml'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    package = tmp_path / "monai_kdsam"
    expected = [package / "_bundles" / "kdsam_deepgrow_2d", package / "_configs" / "smoke.yaml"]
    assert run.stdout.splitlines()[-2:] == [str(path) for path in expected]


@needs_build
def test_the_pins_in_the_bundles_metadata_satisfy_the_packages_requirements(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist")
    requirements = [r for r in map(Requirement, fields) if r.marker is None]
    metadata = json.loads((bundle_path() / "configs" / "metadata.json").read_text())
    pins = dict(metadata["required_packages_version"])
    pins |= {name: metadata[f"{key}_version"] for name, key in (("monai", "monai"), ("torch", "pytorch"))}
    pins["numpy"] = metadata["numpy_version"]
    for requirement in requirements:
        assert requirement.name in pins, f"{requirement.name} is not pinned in metadata.json"
        assert requirement.specifier.contains(pins[requirement.name]), requirement


@needs_build
def test_the_packaged_deploy_application_installs_what_its_extra_does(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = map(Requirement, Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist"))
    wanted = {_plain(r) for r in fields if r.marker is None or r.marker.evaluate({"extra": "deploy"})}
    lines = (ROOT / "deploy" / "requirements.txt").read_text().splitlines()
    assert {_plain(Requirement(line)) for line in lines if line[:1] != "#"} == wanted


def _plain(requirement):
    return requirement.name, frozenset(requirement.extras), requirement.specifier


@needs_build
def test_the_sdist_holds_sources_tests_docs_bundles_and_overlays(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "noxfile.py", ".ci/run"}
    wanted |= {
        name for folder in ("monai_kdsam", "tests", "docs", "bundles", "configs", "deploy") for name in tree(folder)
    }
    assert not wanted - files
    assert {name for name in files if re.search(r"\.pt$|/(models|output|__pycache__)/", name)} == STUDENT


def test_bundles_and_overlays_are_found_in_a_checkout():
    assert bundle_path() == ROOT / "bundles" / "kdsam_deepgrow_2d"
    assert config_path("smoke.yaml") == ROOT / "configs" / "smoke.yaml"


def test_the_version_is_told_to_users():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^(## \[|The first release will be ){re.escape(monai_kdsam.__version__)}", changelog, re.M)
    assert f"version: {monai_kdsam.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version: {monai_kdsam.__version__}\n" in (ROOT / "deploy" / "app.yaml").read_text()
