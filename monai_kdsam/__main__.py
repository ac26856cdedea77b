# SPDX-License-Identifier: Apache-2.0
"""The command line. Training and inference are runs of `python -m monai.bundle run`, which `fit` prints."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from monai_kdsam import __version__
from monai_kdsam.deploy import MODALITIES
from monai_kdsam.errors import UserError


def _demo(arguments: argparse.Namespace) -> str:
    from monai_kdsam.demo import run_demo

    return run_demo(arguments.dir, device=arguments.device)


def _fit(arguments: argparse.Namespace) -> str:
    from monai_kdsam.fit import fit

    given = {name: getattr(arguments, name) for name in ("recipe", "teacher", "bundle", "overlays", "device")}
    return fit(arguments.data, **given, settings=_settings(arguments.set))


def _download(arguments: argparse.Namespace) -> str:
    from monai_kdsam.weights.download import download

    return str(download(arguments.name, arguments.dir))


def _bundle(arguments: argparse.Namespace) -> str:
    from monai_kdsam.bundles import BUNDLES, copy_bundles

    names = [arguments.name] if arguments.name else BUNDLES
    paths = copy_bundles(arguments.dir, names, settings=_settings(arguments.set))
    return f"Wrote {', '.join(map(str, paths))} and the overlays in {paths[0].parent / 'configs'}."


def _bom(arguments: argparse.Namespace) -> str:
    from monai_kdsam.bill_of_materials import write_bill_of_materials

    return f"Wrote {write_bill_of_materials(arguments.bundle, arguments.output)}."


def _export(arguments: argparse.Namespace) -> str:
    from monai_kdsam.export import export_bundle

    _exit_when_told()
    folder, parity = export_bundle(
        arguments.bundle,
        arguments.format,
        precision=arguments.precision,
        calibration=arguments.calibration,
        images=arguments.images,
        output=arguments.output,
    )
    return f"{arguments.format} {arguments.precision}: {parity}.\nWrote {folder}."


def _report(arguments: argparse.Namespace) -> str:
    from monai_kdsam.report import write_report

    page, summary = write_report(
        arguments.bundle,
        arguments.data_list,
        arguments.output,
        sources=dict(_pair(text, "source") for text in arguments.source),
        split=arguments.split,
        others=arguments.other,
        teacher=arguments.teacher,
        commands=arguments.command_line,
        tolerance=arguments.tolerance,
        seed=arguments.seed,
        device=arguments.device,
    )
    counts = ", ".join(f"{name} {row['images']}" for name, row in summary["sets"].items())
    return f"Images of the {arguments.split} split: {counts}.\nWrote {page}, summary.json and cases.csv beside it."


def _label(arguments: argparse.Namespace) -> str:
    from monai_kdsam.label.serve import serve

    given = {"host": arguments.host, "port": arguments.port, "folder": arguments.dir}
    names = ("allow_origin", "allow_model_upload", "max_upload", "max_sessions")
    given |= {name: getattr(arguments, name) for name in names}
    return serve(arguments.studies, arguments.model or ["kdsam_deepgrow_2d"], **given)


def _deploy(arguments: argparse.Namespace) -> str:
    from monai_kdsam.deploy.runtime import prepare_runtime

    prepare_runtime()
    _exit_when_told()
    from monai_kdsam.deploy.application import run_application

    settings = {"segment": arguments.segment, "prompts": arguments.prompts}
    settings["modalities"] = arguments.modalities or MODALITIES
    written = run_application(arguments.input, arguments.output, model=arguments.model, **settings)
    plural = "" if len(written) == 1 else "s"
    return f"Wrote {len(written)} DICOM segmentation{plural} to {arguments.output}."


def _settings(pairs: list[str]) -> dict[str, Any]:
    from monai_kdsam.bundles import parse_value

    return {key: parse_value(value) for key, value in (_pair(text, "set") for text in pairs)}


def _exit_when_told() -> None:
    """Leave by an exception when the process is told to end, so that what is unfinished is removed."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"Expected `--{option}` KEY=VALUE, got {text!r}.")
    return key, value


def build_parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    parser = argparse.ArgumentParser(prog="monai-kdsam", description=__doc__)
    parser.add_argument("--version", action="version", version=f"monai_kdsam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole way on generated pictures, in a few minutes on a CPU")
    demo.add_argument("--dir", default="kdsam_demo", help="folder to write to (default: %(default)s)")
    _add_device(demo)
    demo.set_defaults(run=_demo)

    _add_fit(commands)

    download = commands.add_parser("download", help="fetch pretrained weights, with a checksum")
    names = "sam_vit_b, sam_vit_l, sam_vit_h, vgg16, resnet18, resnet34, resnet50, resnet101, efficientnet_lite0"
    download.add_argument("name", help=names)
    download.add_argument("--dir", default="models", help="folder to write to (default: %(default)s)")
    download.set_defaults(run=_download)

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
    bundle.set_defaults(run=_bundle)

    _add_report(commands)

    export = commands.add_parser("export", help="to ONNX, OpenVINO or TorchScript, with a check of the masks")
    export.add_argument("--bundle", required=True, help="folder of the bundle, with models/model.pt")
    export.add_argument("--format", required=True, choices=["onnx", "openvino", "torchscript"])
    export.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"], help="default: %(default)s")
    export.add_argument("--calibration", metavar="FOLDER", help="pictures to calibrate int8 with")
    export.add_argument("--images", metavar="FOLDER", help="pictures to compare masks on (default: generated ones)")
    export.add_argument("--output", metavar="DIR", help="folder to write (default: in the bundle's models)")
    export.set_defaults(run=_export)

    bom = commands.add_parser("bom", help="bill of materials of a trained bundle, with a model card (CycloneDX)")
    bom.add_argument("bundle", help="folder of the bundle, with models/model.pt")
    bom.add_argument("--output", metavar="FILE", help="default: models/model.cdx.json in the bundle")
    bom.set_defaults(run=_bom)

    _add_label(commands)
    _add_deploy(commands)
    return parser


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: the first GPU, or the CPU)")


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = commands.add_parser("fit", help="train a recipe on your images, evaluate, draw; or go on with it")
    fit.add_argument("data", help="folder of images/ and masks/, or a MONAI datalist (.json)")
    fit.add_argument("--recipe", default="plus", help="plus, paper or promptable (default: %(default)s)")
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
    fit.set_defaults(run=_fit)


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
    _add_device(report)
    report.add_argument("--output", required=True, metavar="DIR", help="folder to write to")
    report.set_defaults(run=_report)


def _add_label(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    label = commands.add_parser("label", help="serve a trained bundle to 3D Slicer, OHIF and CVAT with MONAI Label")
    label.add_argument("--studies", required=True, help="folder of images, or address of a DICOMweb server")
    label.add_argument(
        "--model",
        nargs="+",
        action="extend",
        help="folders of bundles, for pictures, volumes or both (default: kdsam_deepgrow_2d)",
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
    label.set_defaults(run=_label)


def _add_deploy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    deploy = commands.add_parser("deploy", help="DICOM to DICOM segmentations, as a MONAI Deploy application")
    deploy.add_argument("--input", required=True, metavar="DICOM", help="folder of DICOM files")
    deploy.add_argument("--output", required=True, metavar="DIR", help="folder to write, new or empty")
    model = deploy.add_mutually_exclusive_group()
    bundle_default = "kdsam_deepgrow_2d"
    model.add_argument("--bundle", dest="model", metavar="DIR", default=bundle_default, help="default: %(default)s")
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
    deploy.set_defaults(run=_deploy)


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake is told in one line, with exit status 1."""
    arguments = build_parser().parse_args(argv)
    try:
        sys.stdout.write(arguments.run(arguments) + "\n")
    except (ValueError, OSError, RuntimeError) as error:
        from monai_kdsam.errors import report_error

        report_error(type(error), error, error.__traceback__)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("monai_kdsam: stopped\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
