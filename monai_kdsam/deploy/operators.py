# SPDX-License-Identifier: Apache-2.0
"""The operators that the App SDK lacks: pictures of any kind of DICOM image in, segmentations out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.spatial import get_image_coordinate_system
from monai.deploy.core import ConditionType, Image, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series import DICOMSeries
from monai.deploy.core.domain.dicom_series_selection import SelectedSeries, StudySelectedSeries
from monai.deploy.core.domain.dicom_study import DICOMStudy
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator
from monai.deploy.operators.monai_bundle_inference_operator import MonaiBundleInferenceOperator
from pydicom import Dataset

from monai_kdsam.data import Image2DReader
from monai_kdsam.deploy.frame_segmentation import describe_frames
from monai_kdsam.deploy.overlay import save_overlay
from monai_kdsam.deploy.prompt_file import Prompts
from monai_kdsam.deploy.sources import GEOMETRY, Source, group_sources, is_slice, with_prompts
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

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def _copy_without(instance: Any, *keywords: str) -> Dataset:
    """A header without some elements; it shares the others, and `copy.copy` would share even what is deleted."""
    copied = Dataset()
    copied.update({element.tag: element for element in instance if element.keyword not in keywords})
    copied.file_meta = instance.file_meta
    return copied


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
        empty = [element.keyword for element in sop_instance if element.is_empty]
        super().populate_series_attributes(series, _copy_without(sop_instance, *empty))


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
    Named outputs: `seg_image`, `study_selected_series_list` and `output_folder`, as DICOMSegmentationWriterOperator
    wants them, and `source`.
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
        for name in ("seg_image", "study_selected_series_list", "output_folder", "source"):
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
        op_output.emit(self._as_selection(source), "study_selected_series_list")
        op_output.emit(self._folder(number), "output_folder")
        op_output.emit(source, "source")

    def _folder(self, number: int) -> Path:
        """By the UID of the source, with a number where several have it: a series with slices of several directions."""
        uid = self.sources[number].uid
        before = sum(source.uid == uid for source in self.sources[:number])
        return within(self.output_folder, f"{uid}_{before + 1}" if before else uid)

    @staticmethod
    def _as_selection(source: Source) -> list[StudySelectedSeries]:
        series = DICOMSeries(source.instances[0].SeriesInstanceUID)
        for instance in source.instances:
            series.add_sop_instance(instance)
        selection = StudySelectedSeries(DICOMStudy(source.instances[0].StudyInstanceUID))
        selection.add_selected_series(SelectedSeries("", series))
        return [selection]


class SegWriterOperator(DICOMSegmentationWriterOperator):
    """The App SDK's writer, for images without a geometry too: ultrasound, secondary capture, a cine of these.

    highdicom, which the original calls, writes a single frame of them alone; the others are added to its file.
    """

    def create_dicom_seg(self, image: np.ndarray, dicom_series: DICOMSeries, output_dir: Path) -> None:
        """Write the masks (frames, H, W) of 0 and 1 of a series."""
        instance = dicom_series.get_sop_instances()[0].get_native_sop_instance()
        try:
            # A position without a direction and a pixel's size says nothing, yet highdicom would go by it.
            is_placed = is_slice(instance) or "SharedFunctionalGroupsSequence" in instance
            if is_placed and get_image_coordinate_system(instance) is not None:
                super().create_dicom_seg(image, dicom_series, output_dir)
            else:
                self._write_frames(image, instance, output_dir)
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # highdicom's, of headers that it rejects
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"Cannot write a segmentation of {instance.filename}: its header has {reason}") from error

    def _write_frames(self, image: np.ndarray, instance: Any, output_dir: Path) -> None:
        # What stands in for the image: a class that highdicom knows, of images with a single frame and no geometry.
        first = _copy_without(instance, "NumberOfFrames", "SOPClassUID", *GEOMETRY)
        first.SOPClassUID = SECONDARY_CAPTURE
        series = DICOMSeries(instance.SeriesInstanceUID)
        series.add_sop_instance(first)
        super().create_dicom_seg(image[:1], series, output_dir)
        describe_frames(next(output_dir.glob("*.dcm")), instance, image)


class OverlayOperator(Operator):
    """Draws outlines and prompts into a picture, `overlay.png`.

    Named inputs: `seg_image`, `source` and `output_folder`, of MaskCollectorOperator.
    """

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in ("seg_image", "source", "output_folder"):
            spec.input(name)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Draw one source."""
        masks = op_input.receive("seg_image").asnumpy()
        source, folder = op_input.receive("source"), op_input.receive("output_folder")
        save_overlay(folder / "overlay.png", source, masks)
