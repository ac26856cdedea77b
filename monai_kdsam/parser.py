# SPDX-License-Identifier: Apache-2.0
"""The commands' arguments."""

from __future__ import annotations

import argparse

from monai_kdsam import __version__
from monai_kdsam.deploy import MODALITIES

__all__ = ["build_parser"]

DESCRIPTION = "Training and inference are runs of `python -m monai.bundle run`, which `fit` prints."
DEFAULT = "default: kdsam_deepgrow_2d of this folder, or the one that comes with monai_kdsam"


def build_parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    parser = argparse.ArgumentParser(prog="monai-kdsam", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"monai_kdsam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_segment(commands)

    _add_predict_npz(commands)

    demo = commands.add_parser(
        "demo", help="the shipped student on generated pictures, before and after it learns; minutes on a CPU"
    )
    demo.add_argument("--dir", default="kdsam_demo", help="folder to write to (default: %(default)s)")
    _add_device(demo)

    _add_fit(commands)

    download = commands.add_parser("download", help="fetch pretrained weights, or a bundle from a hub, with a checksum")
    names = "sam_vit_b, sam_vit_l, sam_vit_h, vgg16, resnet18, resnet34, resnet50, resnet101, efficientnet_lite0"
    download.add_argument("name", help=f"{names}; or ORG/NAME on Hugging Face's hub")
    download.add_argument("--dir", help="folder to write to (default: models for weights, this one for a bundle)")
    download.add_argument("--revision", help="branch, tag or commit of a bundle (default: the newest commit)")

    bundle = commands.add_parser("bundle", help="copy the bundles and the config overlays out, to train and edit")
    bundle.add_argument("dir", help="folder to write to")
    bundle.add_argument("--name", help="of one bundle, such as kdsam_deepgrow_2d (default: all of them)")
    bundle.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings, such as backbone=resnet18 image_size=512",
    )

    _add_report(commands)

    _add_export(commands)

    bom = commands.add_parser("bom", help="bill of materials of a trained bundle, with a model card (CycloneDX)")
    bom.add_argument("bundle", help="folder of the bundle, with models/model.pt")
    bom.add_argument("--output", metavar="FILE", help="default: models/model.cdx.json in the bundle")

    _add_publish(commands)
    _add_label(commands)
    _add_deploy(commands)
    return parser


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: the first GPU, or the CPU)")


def _add_segment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    segment = commands.add_parser(
        "segment", help="masks of a picture, a folder of them or a datalist, with the shipped student"
    )
    segment.add_argument("pictures", metavar="IMAGE|FOLDER|DATALIST", help="PNG, JPEG, BMP, TIFF, NIfTI or DICOM")
    box = "around what is meant, in pixels from the upper left; for one picture, as the clicks are"
    segment.add_argument("--box", nargs=4, type=float, metavar=("X1", "Y1", "X2", "Y2"), help=box)
    for name, help_text in (("--click", "on what is meant"), ("--background", "beside it")):
        metavar = ("X", "Y")
        segment.add_argument(name, nargs=2, type=float, action="append", default=[], metavar=metavar, help=help_text)
    out = "folder of the masks, 0 and 255, and of the pictures with their outlines (default: %(default)s)"
    segment.add_argument("--out", default="kdsam_segmented", metavar="DIR", help=out)
    segment.add_argument("--overwrite", action="store_true", help="make masks anew that are there already")
    shard = "of a folder or datalist every Nth picture, from the Kth on, as a job array shares them"
    segment.add_argument("--shard", metavar="K/N", help=shard)
    bundle = "a bundle of your own (default: the one that comes with monai_kdsam)"
    segment.add_argument("--bundle", metavar="DIR", help=bundle)
    _add_device(segment)


def _add_predict_npz(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    npz = commands.add_parser("predict-npz", help="labels of .npz cases of the CVPR challenges, from exported files")
    npz.add_argument("cases", metavar="IN", help="an .npz file, or a folder of them, with imgs and boxes or clicks")
    npz.add_argument("out", metavar="OUT", help="folder of files of the same names with segs; those there are replaced")
    model = npz.add_mutually_exclusive_group()
    model.add_argument("--model", metavar="EXPORT", help="folder that `export` wrote; starts in a second")
    bundle = "not exported, with PyTorch (default: the one that comes with monai_kdsam)"
    model.add_argument("--bundle", metavar="DIR", help=bundle)
    npz.add_argument("--threads", type=int, metavar="N", help="to compute with (default: every core)")
    close_up = "how much is seen with a box, in sides of the box; 0: all of the picture, faster (default: the bundle's)"
    npz.add_argument("--close-up", type=float, metavar="SIDES", help=close_up)


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = commands.add_parser("fit", help="train a recipe on your images, evaluate, draw; or go on with it")
    fit.add_argument("data", help="folder of images/ and masks/, or a datalist (.json, .csv)")
    fit.add_argument("--recipe", default="plus", help="plus, paper, promptable or few_labels (default: %(default)s)")
    fit.add_argument(
        "--teacher",
        default="sam",
        help="sam as published; adapted: SAM, fine-tuned on your masks first; scratch: a small one that learns from "
        "your masks alone, for machines without SAM's weights (default: %(default)s)",
    )
    bundle = "folder of the bundle, made if it does not exist (default: %(default)s)"
    fit.add_argument("--bundle", default="kdsam_deepgrow_2d", metavar="DIR", help=bundle)
    fit.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of docs/reference/configs.md, such as image_size=512; distill.epochs=5 is for one phase",
    )
    overlays = "more config files, or their names, such as students/resnet18"
    fit.add_argument("--overlays", nargs="+", action="extend", default=[], metavar="NAME", help=overlays)
    _add_device(fit)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="evaluate a bundle against other models: intervals, plots, cases")
    report.add_argument("--bundle", required=True, metavar="[NAME=]DIR", help="with models/model.pt")
    report.add_argument(
        "--data_list",
        required=True,
        metavar="FILE",
        help="datalist, or the split.json that training wrote in its output",
    )
    report.add_argument(
        "--source",
        nargs="+",
        action="extend",
        default=[],
        metavar="SET=FOLDER",
        help="where the images of a split.json lie",
    )
    report.add_argument(
        "--split", default="test", choices=["training", "validation", "test"], help="default: %(default)s"
    )
    report.add_argument(
        "--other",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]DIR|FILE",
        help="other bundles, exports, or weights of the same network",
    )
    report.add_argument("--teacher", metavar="KIND=FILE", help="weights of SAM's layout, as in vit_b=FILE")
    report.add_argument(
        "--command",
        dest="command_line",
        action="append",
        default=[],
        metavar="[NAME=]COMMAND",
        help="a model of any kind that speaks docs/howto/report.md's protocol; may be given several times",
    )
    report.add_argument(
        "--tolerance", type=float, default=1.0, metavar="MM", help="of the surface Dice (default: %(default)s)"
    )
    report.add_argument("--seed", type=int, default=0, help="of prompts and intervals (default: %(default)s)")
    report.add_argument(
        "--afresh", action="store_true", help="corrective clicks without the last answer, which `go_on` shows models"
    )
    _add_device(report)
    report.add_argument("--output", required=True, metavar="DIR", help="folder to write to")


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser("export", help="to ONNX, OpenVINO or TorchScript, with a check of the masks")
    export.add_argument("--bundle", required=True, help="folder of the bundle, with models/model.pt")
    formats = ["onnx", "openvino", "torchscript"]
    export.add_argument("--format", default="onnx", choices=formats, help="default: %(default)s")
    layout = "sam: for programs that run segment_anything's ONNX files (default: for monai_kdsam.runtime and MONAI)"
    export.add_argument("--layout", choices=["sam"], help=layout)
    export.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"], help="default: %(default)s")
    export.add_argument("--calibration", metavar="FOLDER", help="pictures to calibrate int8 with")
    export.add_argument("--images", metavar="FOLDER", help="pictures to compare masks on (default: generated ones)")
    export.add_argument("--output", metavar="DIR", help="folder to write (default: in the bundle's models)")


def _add_publish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    publish = commands.add_parser("publish", help="write a bundle as it lies on Hugging Face's hub; --push uploads it")
    publish.add_argument("--bundle", metavar="DIR", help="a bundle of your own (default: the one that ships)")
    publish.add_argument("--dir", required=True, metavar="DIR", help="folder to write; if it is there, to push")
    publish.add_argument("--push", metavar="ORG/NAME", help="upload the folder; a new repository is private")


def _add_label(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    label = commands.add_parser("label", help="serve a trained bundle to 3D Slicer, OHIF and CVAT with MONAI Label")
    label.add_argument("--studies", required=True, help="folder of images, or address of a DICOMweb server")
    label.add_argument(
        "--model",
        nargs="+",
        action="extend",
        help=f"folders of bundles, for pictures, volumes or both ({DEFAULT})",
    )
    label.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    label.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to serve other machines (default: %(default)s)")
    label.add_argument("--dir", default="kdsam_label", help="folder for the server's files (default: %(default)s)")
    label.add_argument(
        "--allow-origin",
        nargs="+",
        action="extend",
        default=[],
        metavar="ADDRESS",
        help="whose pages may use the server beside its own, as https://label.example.org; a proxy's own address too",
    )
    label.add_argument("--allow-model-upload", action="store_true", help="let clients replace the weights")
    label.add_argument(
        "--max-upload", type=int, default=1024, metavar="MIB", help="of a request (default: %(default)s)"
    )
    label.add_argument(
        "--max-sessions", type=int, default=4096, metavar="MIB", help="of all sessions' images (default: %(default)s)"
    )


def _add_deploy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    deploy = commands.add_parser("deploy", help="DICOM to DICOM segmentations, as a MONAI Deploy application")
    deploy.add_argument("--input", required=True, metavar="DICOM", help="folder of DICOM files")
    deploy.add_argument("--output", required=True, metavar="DIR", help="folder to write, new or empty")
    model = deploy.add_mutually_exclusive_group()
    model.add_argument("--bundle", dest="model", metavar="DIR", help=DEFAULT)
    model.add_argument("--model", metavar="FILE", help="instead: TorchScript file made from a bundle")
    deploy.add_argument("--prompts", metavar="FILE", help="JSON file of points and boxes (default: none, automatic)")
    deploy.add_argument(
        "--segment",
        default="lesion",
        metavar="NAME",
        help="what is segmented: a name, or NAME=CATEGORY/TYPE by keywords of pydicom's codes (default: %(default)s)",
    )
    modalities = f"of the series to segment (default: {' '.join(MODALITIES)})"
    deploy.add_argument("--modalities", nargs="+", action="extend", metavar="US", help=modalities)
