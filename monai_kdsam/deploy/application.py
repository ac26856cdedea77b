# SPDX-License-Identifier: Apache-2.0
"""The MONAI Deploy application, and one run of it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping

from monai_kdsam.deploy import MODALITIES
from monai_kdsam.deploy.dicom_folder import check_folder
from monai_kdsam.deploy.model import DeployModel, open_model
from monai_kdsam.deploy.operators import (
    BundleOperator,
    FrameReaderOperator,
    LoaderOperator,
    MaskCollectorOperator,
    OverlayOperator,
    SegWriterOperator,
)
from monai_kdsam.deploy.prompt_file import Prompts, read_prompts
from monai_kdsam.deploy.sources import Source
from monai_kdsam.dicom.codes import Segment, segment_named
from monai_kdsam.errors import ExistingFileError, UserError
from monai_kdsam.files import scratch_folder

__all__ = ["SegmentationApplication", "run_application"]


class SegmentationApplication(Application):
    """DICOM files to DICOM segmentations and pictures.

    Args:
        input_folder: with DICOM files; subfolders count.
        files: in it, that must be segmented; see `check_folder`.
        output_folder: gets a folder for each segmentation, named by the UID of the series or of the image.
        model: what segments.
        segment: what it segments.
        prompts: for the images that shall be segmented; None segments all without a prompt.
        modalities: of the series that are segmented.
    """

    def __init__(
        self,
        input_folder: Path,
        files: Sequence[Path],
        output_folder: Path,
        *,
        model: DeployModel,
        segment: Segment,
        prompts: Prompts | None = None,
        modalities: Sequence[str] = MODALITIES,
    ) -> None:
        self.input_folder, self.files, self.output_folder = input_folder, files, output_folder
        self.model, self.segment = model, segment
        self.prompts, self.modalities = prompts, modalities
        self.sources: list[Source] = []
        super().__init__([sys.executable])  # holoscan would read the command line itself

    def compose(self) -> None:
        """Connect the operators."""
        series, image = "study_selected_series_list", "image"
        load = LoaderOperator(self, CountCondition(self, 1), input_folder=self.input_folder, name="load")
        allowed = "|".join(map(re.escape, self.modalities))
        rules = {"selections": [{"name": "", "conditions": {"Modality": f"^({allowed})$"}}]}
        select = DICOMSeriesSelectorOperator(self, rules=json.dumps(rules), all_matched=True, name="select")
        read = FrameReaderOperator(self, files=self.files, prompts=self.prompts, planned=self.sources, name="read")
        infer = BundleOperator(
            self,
            app_context=self._context(),
            input_mapping=[IOMapping(image, Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.model.path,
            name="infer",
        )
        collect = MaskCollectorOperator(self, output_folder=self.output_folder, name="collect")
        kind = "SEMIAUTOMATIC" if self.prompts else "AUTOMATIC"
        segment = replace(self.segment, version=str(self.model.metadata["version"]), algorithm_type=kind)
        write = SegWriterOperator(self, segment=segment, model=self.model, name="write")
        draw = OverlayOperator(self, name="draw")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, read, {(series, series)})
        self.add_flow(read, infer, {(image, image)})
        self.add_flow(read, collect, {("sources", "sources")})
        self.add_flow(infer, collect, {("pred", "pred")})
        for last in (write, draw):
            self.add_flow(collect, last, {(name, name) for name in ("seg_image", "source", "output_folder")})

    def check_complete(self) -> None:
        """Raise a UserError unless all is written: told to end, holoscan ends as if all had been done."""
        files = [list(self.output_folder.glob(f"*/{name}")) for name in ("*.dcm", "overlay.png")]
        written = min(map(len, files))
        if not self.sources or written < len(self.sources):
            raise UserError(
                f"Stopped after {written} of {len(self.sources) or 'all'} segmentations, of which nothing is kept."
            )

    def _context(self) -> AppContext:
        context = AppContext({"model": str(self.model.path)})
        if self.model.path.is_dir():  # the operator loads a bundle's folder by itself, if there is no other model
            context.models = None
            return context
        try:
            _ = context.models.get().predictor  # loads it
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"Cannot load {self.model.path} with this version of PyTorch: {reason}") from error
        return context


def run_application(
    input_folder: str | Path,
    output_folder: str | Path,
    *,
    model: str | Path,
    segment: str = "lesion",
    prompts: str | Path | None = None,
    modalities: Sequence[str] = MODALITIES,
) -> list[Path]:
    """Segment the DICOM images of a folder.

    Args:
        input_folder: with DICOM files.
        output_folder: new or empty.
        model: folder of a bundle, or TorchScript file made from it.
        segment: a name in `SEGMENTS`, or NAME=CATEGORY/TYPE.
        prompts: file of prompts; docs/howto/deploy.md describes it.
        modalities: of the series that are segmented.

    Returns:
        The DICOM segmentations; beside each lies a picture, `overlay.png`. After an error there are none.

    Raises:
        FileNotFoundError: when an input is missing.
        FileExistsError: when there is something in the output folder.
        ValueError: when an input is damaged or of another kind.
    """
    described = segment_named(segment)
    opened = open_model(model)
    asked = read_prompts(prompts) if prompts is not None else None
    files = check_folder(input_folder, modalities)
    settings: dict[str, Any] = {"segment": described, "prompts": asked, "modalities": modalities}
    with _all_or_nothing(Path(output_folder)) as scratch:
        application = SegmentationApplication(Path(input_folder), files, scratch, model=opened, **settings)
        application.run()
        application.check_complete()
    return sorted(Path(output_folder).glob("*/*.dcm"))


@contextlib.contextmanager
def _all_or_nothing(output: Path) -> Iterator[Path]:
    """A folder inside the output, whose content is moved up once the block has ended well."""
    existed = output.exists()
    if existed and (not output.is_dir() or any(not entry.name.startswith(".") for entry in output.iterdir())):
        raise ExistingFileError(f"Expected `--output` to be new or empty, got {output}.")
    moved: list[Path] = []
    try:
        with scratch_folder(output, "unfinished") as scratch:
            yield scratch
            for folder in sorted(scratch.iterdir()):
                moved.append(output / folder.name)
                folder.rename(moved[-1])
    except BaseException:
        for folder in moved if existed else [output]:
            shutil.rmtree(folder, ignore_errors=True)
        raise
