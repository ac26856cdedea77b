# SPDX-License-Identifier: Apache-2.0
"""The command line: what each command does with its arguments."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from typing import Any

from monai_kdsam.deploy import MODALITIES
from monai_kdsam.errors import UserError
from monai_kdsam.parser import build_parser


def _demo(arguments: argparse.Namespace) -> str:
    from monai_kdsam.demo import run_demo

    return run_demo(arguments.dir, device=arguments.device)


def _segment(arguments: argparse.Namespace) -> str:
    # Of readers that are not used.
    warnings.filterwarnings("ignore", module=r"monai\.")
    logging.getLogger("monai").setLevel(logging.ERROR)
    from monai_kdsam.segment import segment

    return segment(
        arguments.pictures,
        arguments.out,
        bundle=arguments.bundle,
        box=arguments.box,
        clicks=arguments.click,
        background=arguments.background,
        device=arguments.device,
        overwrite=arguments.overwrite,
        shard=arguments.shard,
    )


def _predict_npz(arguments: argparse.Namespace) -> str:
    from monai_kdsam.predict_npz import predict_npz

    threads = (os.cpu_count() or 1) if arguments.threads is None else arguments.threads
    settings = {"threads": 1, "close_up": arguments.close_up}
    if arguments.model:
        from monai_kdsam.runtime import Predictor

        return predict_npz(arguments.cases, arguments.out, Predictor(arguments.model, **settings), threads=threads)
    from monai_kdsam.bundles import shipped_bundle
    from monai_kdsam.export.unexported import UnexportedPredictor

    predictor = UnexportedPredictor(arguments.bundle or shipped_bundle(), **settings)
    return predict_npz(arguments.cases, arguments.out, predictor, threads=threads)


def _fit(arguments: argparse.Namespace) -> str:
    from monai_kdsam.fit import fit

    given = {name: getattr(arguments, name) for name in ("recipe", "teacher", "bundle", "overlays", "device")}
    return fit(arguments.data, **given, settings=_settings(arguments.set))


def _download(arguments: argparse.Namespace) -> str:
    if "/" in arguments.name:
        from monai_kdsam.hub import copy_fetched

        return str(copy_fetched(arguments.name, arguments.dir or ".", arguments.revision))
    from monai_kdsam.weights.download import download

    if arguments.revision:
        raise UserError(f"Expected `--revision` with a bundle, ORG/NAME, got it with the weights {arguments.name}.")
    return str(download(arguments.name, arguments.dir or "models"))


def _bundle(arguments: argparse.Namespace) -> str:
    from monai_kdsam.bundle_weights import describe_bundle
    from monai_kdsam.bundles import BUNDLES, bundle_path, copy_bundles

    names = [arguments.name] if arguments.name else BUNDLES
    paths = copy_bundles(arguments.dir, names, settings=_settings(arguments.set))
    told = [f"Wrote {', '.join(map(str, paths))} and the overlays in {paths[0].parent / 'configs'}."]
    told += [describe_bundle(path, bundle_path(path.name)) for path in paths]
    return "\n".join(filter(None, told))


def _bom(arguments: argparse.Namespace) -> str:
    from monai_kdsam.bill_of_materials import write_bill_of_materials

    return f"Wrote {write_bill_of_materials(arguments.bundle, arguments.output)}."


def _publish(arguments: argparse.Namespace) -> str:
    from monai_kdsam.publish import publish

    return publish(arguments.bundle, arguments.dir, push=arguments.push)


def _export(arguments: argparse.Namespace) -> str:
    from monai_kdsam.bundles import weights_path
    from monai_kdsam.export import export_bundle
    from monai_kdsam.weights.sidecar import describe_weights

    if arguments.layout and arguments.format != "onnx":
        raise UserError(f"Expected `--format` onnx with `--layout` {arguments.layout}, got {arguments.format!r}.")
    _exit_when_told()
    form = arguments.layout or arguments.format
    folder, parity = export_bundle(
        arguments.bundle,
        form,
        precision=arguments.precision,
        calibration=arguments.calibration,
        images=arguments.images,
        output=arguments.output,
    )
    weights = describe_weights(weights_path(arguments.bundle))
    return f"{form} {arguments.precision}: {parity}.\nWrote {folder}.\n{weights}"


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
        go_on=not arguments.afresh,
        device=arguments.device,
    )
    counts = ", ".join(f"{name} {row['images']}" for name, row in summary["sets"].items())
    told = [f"{model}: {about}" for model, about in summary["weights"].items()]
    told += [f"Images of the {arguments.split} split: {counts}."]
    return "\n".join([*told, f"Wrote {page}, summary.json and cases.csv beside it."])


def _label(arguments: argparse.Namespace) -> str:
    from monai_kdsam.label.serve import serve

    given = {"host": arguments.host, "port": arguments.port, "folder": arguments.dir}
    names = ("allow_origin", "allow_model_upload", "max_upload", "max_sessions")
    given |= {name: getattr(arguments, name) for name in names}
    return serve(arguments.studies, arguments.model, **given)


def _deploy(arguments: argparse.Namespace) -> str:
    from monai_kdsam.deploy.app_sdk import prepare_app_sdk

    prepare_app_sdk()
    _exit_when_told()
    from monai_kdsam.bundles import default_bundle
    from monai_kdsam.deploy.application import run_application

    model = arguments.model or default_bundle()
    if not arguments.model:
        sys.stdout.write(f"No --bundle: segmenting with {model}.\n")
    settings = {"segment": arguments.segment, "prompts": arguments.prompts}
    settings["modalities"] = arguments.modalities or MODALITIES
    written = run_application(arguments.input, arguments.output, model=model, **settings)
    plural = "" if len(written) == 1 else "s"
    return f"Wrote {len(written)} DICOM segmentation{plural} to {arguments.output}."


def _settings(pairs: list[str]) -> dict[str, Any]:
    from monai_kdsam.config_files import parse_value

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


COMMANDS = {
    "segment": _segment,
    "predict-npz": _predict_npz,
    "demo": _demo,
    "fit": _fit,
    "download": _download,
    "bundle": _bundle,
    "bom": _bom,
    "publish": _publish,
    "export": _export,
    "report": _report,
    "label": _label,
    "deploy": _deploy,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake is told in one line, with exit status 1."""
    arguments = build_parser().parse_args(argv)
    try:
        sys.stdout.write(COMMANDS[arguments.command](arguments) + "\n")
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
