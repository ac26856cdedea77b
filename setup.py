# SPDX-License-Identifier: Apache-2.0
"""Packaging: what is installed and why, and how the bundles and overlays travel in the wheel."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DATA_FOLDERS = ("bundles", "configs")
# The student that ships; other weights are what somebody trained here.
SHIPPED = [f"bundles/kdsam_deepgrow_2d/models/{name}" for name in ("model.pt", "model.json")]
LEFT_OUT = shutil.ignore_patterns("models", "output", "eval", "mlruns", "__pycache__", ".*")


def read_requirements(name: str) -> list[str]:
    """The lines of a requirements file that are no comments."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


REQUIREMENTS = [
    # bundles, engines and transforms; its extras: fire and pyyaml for `python -m monai.bundle` and YAML overlays,
    # ignite for the engines, nibabel for NIfTI, tqdm for progress bars
    "monai[fire,ignite,nibabel,pyyaml,tqdm]>=1.6,<1.7",
    # the networks; MONAI 1.6 begins at this version too
    "torch>=2.8",
    # the ResNet trunks of the students and the VGG16 of the perceptual loss
    "torchvision",
    # SAM itself: encoders, prompt encoder and mask decoder
    "segment-anything>=1.0",
    # the trunk of the student that the bundles serve, and any other trunk of timm's as `backbone: timm/NAME`
    "timm>=1.0.12",
    # handlers of our own, and the progress bars in the configs
    "pytorch-ignite>=0.5",
    # 2-D NIfTI images
    "nibabel>=5",
    # DICOM, with its compressions and color spaces
    "SimpleITK>=2.3",
    # DICOM headers: sequences, and how many pixels there are; 2 as well, because MONAI Label 0.8 still needs it
    "pydicom>=2.4",
    # MS-SSIM, the alternative structural loss
    "pytorch-msssim>=1.0",
    # one run of a phase in a folder at a time
    "filelock>=3.8",
    # bundles from a hub and to it; timm brings it along
    "huggingface_hub>=0.25",
    # the files of the embedding cache
    "safetensors>=0.4.3",
    # distance transforms and connected components of masks
    "scipy>=1.12",
    # PNG, JPEG, BMP and TIFF, and the picture sheets
    "pillow>=10",
    # the report's page; torch brings it along
    "jinja2>=3",
    # the handler that logs curves
    "tensorboard>=2.12",
    # progress bars outside the engines
    "tqdm>=4.47",
    # arrays; 1.26 as well, because MONAI Label 0.8 still needs it
    "numpy>=1.26,<3",
]

EXTRAS = {
    # the recipe `promptable`: regions of pictures to ask for
    "train": ["scikit-image>=0.22"],
    # the plots of `python -m monai_kdsam report`
    "report": ["matplotlib>=3.8"],
    "test": [
        # regions of pictures to ask for in training
        "scikit-image>=0.22",
        # the report is tested
        "matplotlib>=3.8",
        # runs the tests and the examples in the documentation
        "pytest>=8",
        # on several cores
        "pytest-xdist>=3.5",
        # builds the wheel whose content a test compares with the tree
        "build>=1",
        "setuptools>=77",
        # `monai.bundle verify_metadata`
        "jsonschema>=4",
        # CycloneDX's schema, by which bills of materials are checked
        "cyclonedx-python-lib[json-validation]>=8",
        # `--tracking mlflow` is tested
        "mlflow>=3",
        # peak memory of a step
        "psutil",
        # writes DICOM files for tests, and is a second opinion on how they decode; the rest are its decompressors
        "pydicom>=3",
        "pylibjpeg",
        "pylibjpeg-libjpeg",
        "pylibjpeg-openjpeg",
    ],
    # `--tracking mlflow` in any of the bundle's runs
    "tracking": ["mlflow>=3"],
    # the annotation server; for an environment of its own, it needs NumPy 1.26
    "label": [
        "monailabel==0.8.5",
        # pydicom-seg, which the server imports, needs pydicom 2, and these are the last versions that work with it
        "pydicom<3",
        "pynetdicom<3",
        "dicomweb-client<0.60",
        # provides itkimage2segimage, which the server would download at its start
        "dcmqi",
        # writes DICOM segmentations; the last version for pydicom 2
        "highdicom<0.23",
        # one server a folder; torch brings it along
        "filelock",
        # the server imports distutils and pydicom 2 pkg_resources, both of which Python and setuptools have given up
        "setuptools<81",
    ],
    # pipelines between DICOM and DICOM
    "deploy": [
        # the operators; our application builds on methods of theirs that a later version may change
        "monai-deploy-app-sdk==4.0.0",
        # what runs them; 4.2 is the last that the App SDK's authors name
        "holoscan-cu13<4.3",
        # `monai-deploy package`, which later versions have given up
        "holoscan-cli<4.3",
        # libcudart.so.13, which holoscan is linked with; torch's builds for a CPU alone do not bring it along
        "nvidia-cuda-runtime>=13,<14",
        # reads the studies; the vocabulary of segments
        "pydicom>=3",
        # writes DICOM segmentations
        "highdicom>=0.23",
    ],
    # other runtimes; who only predicts with exported files needs onnxruntime or openvino alone
    "export": [
        # the format
        "onnx>=1.17",
        # torch's exporter to it
        "onnxscript>=0.5.3",
        # runs it, converts it to half precision, and tells whether the masks are still the network's
        "onnxruntime>=1.20",
        # the same for Intel's format, which is the fastest in 8 bits
        "openvino>=2025.0",
        # quantizes both to 8 bits, and finds the layers that must not be
        "nncf>=3.0",
    ],
    # the tools of .ci/run, and the documentation as a site, listed with their reasons
    "dev": read_requirements(".ci/tools.txt"),
    "docs": read_requirements("docs/requirements.txt"),
}


class BuildWithData(build_py):
    """Put `bundles` and `configs` into the package as `_bundles` and `_configs`; an editable install reads the tree."""

    def run(self) -> None:
        """Copy them anew, so that a file deleted from the tree does not live on in the build folder."""
        super().run()
        if self.editable_mode:
            return
        for name in DATA_FOLDERS:
            target = Path(self.build_lib) / "monai_kdsam" / f"_{name}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / name, target, ignore=LEFT_OUT)
        for name in SHIPPED:
            if not (ROOT / name).is_file():  # a clone from before there was one
                continue
            copied = Path(self.build_lib) / "monai_kdsam" / f"_{name}"
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, copied)


setup(
    name="monai_kdsam",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "monai_kdsam" / "__init__.py").read_text(encoding="utf-8"))[1],
    description="Distill the Segment Anything Model into a small promptable network of your medical images, in MONAI",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The monai_kdsam authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["MONAI", "SAM", "segmentation", "distillation", "medical imaging"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["monai_kdsam", "monai_kdsam.*"]),
    package_data={"monai_kdsam": ["py.typed", "report/page.html.j2", "model_card.md.j2"]},
    entry_points={"console_scripts": ["monai-kdsam = monai_kdsam.__main__:main"]},
    cmdclass={"build_py": BuildWithData},
    python_requires=">=3.10,<3.14",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    zip_safe=False,
)
