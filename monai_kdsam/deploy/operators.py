# SPDX-License-Identifier: Apache-2.0
"""The operators that the App SDK lacks: pictures of any kind of DICOM image in, segmentations out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.sr import CodedConcept
from monai.deploy.core import ConditionType, Image, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series import DICOMSeries
from monai.deploy.core.domain.dicom_series_selection import StudySelectedSeries
from monai.deploy.core.domain.dicom_study import DICOMStudy
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.monai_bundle_inference_operator import MonaiBundleInferenceOperator
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from monai_kdsam.data import Image2DReader
from monai_kdsam.deploy.model import DeployModel
from monai_kdsam.deploy.overlay import save_overlay
from monai_kdsam.deploy.prompt_file import Prompts
from monai_kdsam.deploy.sources import Source, group_sources, with_prompts
from monai_kdsam.dicom.codes import Segment
from monai_kdsam.dicom.segmentation import make_segmentation
from monai_kdsam.errors import UserError
from monai_kdsam.files import within

__all__ = [
    "BundleOperator",
    "FrameReaderOperator",
    "LoaderOperator",
    "MaskCollectorOperator",
    "OverlayOperator",
    "SegWriterOperator",
]


class LoaderOperator(DICOMDataLoaderOperator):
    """The App SDK's loader, for series with empty attributes too, such as a series number; the original loses them.

    It also keeps every image of a series: the original keeps one a position, and ultrasound stills may all say
    (0, 0, 0).
    """

    def _load_data(self, files: list[str]) -> list[DICOMStudy]:
        studies: dict[str, DICOMStudy] = {}
        series: dict[str, DICOMSeries] = {}
        for file in sorted(file for file in files if Path(file).is_file()):  # no dead links
            for study in super()._load_data([file]):
                kept = studies.setdefault(study.StudyInstanceUID, study)
                for found in study.get_all_series():
                    whole = series.setdefault(found.SeriesInstanceUID, found)
                    if whole is found:
                        kept.add_series(found)
                        continue
                    for instance in found.get_sop_instances():
                        whole.add_sop_instance(instance.get_native_sop_instance())
        return list(studies.values())

    def populate_series_attributes(self, series: DICOMSeries, sop_instance: Any) -> None:
        """Copy the attributes of a series that have a value."""
        told = Dataset({element.tag: element for element in sop_instance if not element.is_empty})
        super().populate_series_attributes(series, told)


class FrameReaderOperator(Operator):
    """Reads the selected series picture by picture, as the bundle reads files.

    The App SDK's DICOMSeriesToVolumeOperator makes one gray volume of one series, by its positions: it knows no color,
    no frames, no image without a geometry, and no display window.

    Named input: `study_selected_series_list`, of DICOMSeriesSelectorOperator.
    Named outputs: `sources`, once, a list of `Source`; `image`, an `Image` (W, H, 3) for each frame to segment, with
    its place and its prompt in the metadata.

    Args:
        fragment: the application.
        files: that must be among the selected series.
        prompts: None segments everything without a prompt.
        planned: a list that gets the sources, for whoever counts what becomes of them.

    Raises:
        ValueError: when the series hold no images, a file is damaged, or a prompt is for no image or not on it.
    """

    def __init__(
        self,
        fragment: Any,
        *args: Any,
        files: Sequence[Path],
        prompts: Prompts | None = None,
        planned: list[Source] | None = None,
        **kwargs: Any,
    ) -> None:
        self.files, self.prompts = files, prompts
        self.planned = [] if planned is None else planned
        self.jobs: Iterator[Image] | None = None
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        # It goes on emitting after its one message was received.
        spec.input("study_selected_series_list").condition(ConditionType.NONE)
        spec.output("sources").condition(ConditionType.NONE)
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Emit the next picture."""
        if self.jobs is None:
            studies = op_input.receive("study_selected_series_list")
            if studies is None:
                return
            sources = self._plan(studies)
            self.planned += sources
            self.jobs = self._read(sources)
            op_output.emit(sources, "sources")
        image = next(self.jobs, None)
        if image is None:
            self.stop_execution()
        else:
            op_output.emit(image, "image")

    def _plan(self, studies: list[StudySelectedSeries]) -> list[Source]:
        series = [
            [instance.get_native_sop_instance() for instance in selected.series.get_sop_instances()]
            for study in studies
            for selected in study.selected_series
        ]
        loaded = {Path(instance.filename) for instances in series for instance in instances}
        for file in self.files:
            if file not in loaded:  # the loader passes over what it does not understand
                raise UserError(f"The App SDK cannot load {file}. Repair its header, or leave it out.")
        found = [source for instances in series for source in group_sources(instances)]
        if not found:
            raise UserError("The DICOM files hold no images.")
        return with_prompts(found, self.prompts)

    @staticmethod
    def _read(sources: list[Source]) -> Iterator[Image]:
        reader = Image2DReader()
        for number, source in enumerate(sources):
            frames = source.frames
            for place, request in source.requests.items():
                pixels, meta = reader.get_data(reader.read(frames[place].path))
                # uint8, as LoadImage, whose place this takes, gives it to the preprocessing.
                yield Image(np.asarray(pixels), {**meta, "source": number, "place": place, "prompt": request})


class BundleOperator(MonaiBundleInferenceOperator):
    """The App SDK's operator for a bundle whose clicks come with the image, and whose masks are 2-D.

    The original hands preprocessing only what metadata.json lists, looks for a bundle folder's weights in the working
    directory, and expects masks with a channel.
    """

    def _init_config(self, config_names: list[str]) -> None:
        super()._init_config(config_names)
        if self.bundle_path.is_dir():
            self._parser.update({"bundle_root": str(self.bundle_path)})

    def pre_process(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Preprocess an image with the prompt in its metadata."""
        return super().pre_process({**data, **data["image"].meta.pop("prompt", {})})

    def post_process(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Postprocess the logits, and turn the mask (W, H) into (1, H, W), rows first."""
        mask = super().post_process(data, *args, **kwargs)["pred"]
        return {"pred": mask.reshape(mask.shape[-2:]).T[None]}


class MaskCollectorOperator(Operator):
    """Collects the masks of the frames of a source, and hands them on when they are complete.

    Named inputs: `sources` and `pred`, an `Image` (H, W) with its place in the metadata.
    Named outputs: `seg_image`, an `Image` (frames, H, W) of 0 and 1, its `source`, and `output_folder`, for its files.
    """

    def __init__(self, fragment: Any, *args: Any, output_folder: Path, **kwargs: Any) -> None:
        self.output_folder = output_folder
        self.sources: list[Source] = []
        self.masks: dict[int, dict[int, np.ndarray]] = {}
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input("sources").condition(ConditionType.NONE)
        spec.input("pred")
        for name in ("seg_image", "source", "output_folder"):
            spec.output(name).condition(ConditionType.NONE)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Take one mask."""
        self.sources = op_input.receive("sources") or self.sources
        image = op_input.receive("pred")
        number, place = image.metadata()["source"], image.metadata()["place"]
        masks = self.masks.setdefault(number, {})
        masks[place] = image.asnumpy()
        source = self.sources[number]
        if len(masks) < len(source.requests):
            return
        stack = np.zeros((len(source.frames), *source.size), dtype=np.uint8)
        for at, mask in self.masks.pop(number).items():
            stack[at] = mask
        op_output.emit(Image(stack), "seg_image")
        op_output.emit(source, "source")
        op_output.emit(self._folder(number), "output_folder")

    def _folder(self, number: int) -> Path:
        """By the UID of the source, with a number where several have it: a series with slices of several directions."""
        uid = self.sources[number].uid
        before = sum(source.uid == uid for source in self.sources[:number])
        return within(self.output_folder, f"{uid}_{before + 1}" if before else uid)


class _MaskWriterOperator(Operator):
    """Takes what MaskCollectorOperator hands on, one source after the other."""

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in ("seg_image", "source", "output_folder"):
            spec.input(name)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write what is made of one source."""
        masks = op_input.receive("seg_image").asnumpy()
        self.write(op_input.receive("source"), masks, op_input.receive("output_folder"))

    def write(self, source: Source, masks: np.ndarray, folder: Path) -> None:
        """Write what is made of a source and its masks (frames, H, W) of 0 and 1 into its folder."""
        raise NotImplementedError


class SegWriterOperator(_MaskWriterOperator):
    """Writes a DICOM segmentation.

    The App SDK's DICOMSegmentationWriterOperator knows no images without a geometry: ultrasound, secondary capture, a
    cine of these.

    Named inputs: `seg_image`, `source` and `output_folder`, of MaskCollectorOperator.

    Args:
        fragment: the application.
        segment: what the masks show.
        model: what made them; of other weights it is another device.
    """

    def __init__(self, fragment: Any, *args: Any, segment: Segment, model: DeployModel, **kwargs: Any) -> None:
        self.segment, self.equipment = segment, Dataset()
        self.equipment.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.ProcessingEquipment)]
        self.equipment.Manufacturer = "monai_kdsam"
        self.equipment.ManufacturerModelName = str(model.metadata.get("name", "KD SAM"))
        self.equipment.SoftwareVersions = segment.version
        self.equipment.DeviceUID = generate_uid(entropy_srcs=[model.sha256])
        super().__init__(fragment, *args, **kwargs)

    def write(self, source: Source, masks: np.ndarray, folder: Path) -> None:
        """Write that of one source."""
        segmentation = make_segmentation(source.instances, masks, [self.segment], f"KD SAM: {self.segment.label}")
        segmentation.ContributingEquipmentSequence = [self.equipment]
        folder.mkdir(parents=True, exist_ok=True)
        segmentation.save_as(folder / f"{segmentation.SOPInstanceUID}.dcm")


class OverlayOperator(_MaskWriterOperator):
    """Draws outlines and prompts into a picture, `overlay.png`.

    Named inputs: `seg_image`, `source` and `output_folder`, of MaskCollectorOperator.
    """

    def write(self, source: Source, masks: np.ndarray, folder: Path) -> None:
        """Draw one source."""
        save_overlay(folder / "overlay.png", source, masks)
