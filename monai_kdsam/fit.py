# SPDX-License-Identifier: Apache-2.0
"""The whole way of a recipe on one's own images: phase after phase, each as a run of MONAI that can be typed too."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from monai_kdsam.bundle_weights import network_settings
from monai_kdsam.bundles import bundle_path, copy_bundle, find_student
from monai_kdsam.errors import ExistingFileError, MissingFileError, UserError, did_you_mean
from monai_kdsam.files import write_text
from monai_kdsam.handlers.case_report import read_mean_dice
from monai_kdsam.phases import phase_command, read_phase, run_phase
from monai_kdsam.report.sheets import save_predicted_sheet
from monai_kdsam.settings import used_keys
from monai_kdsam.weights.download import WEIGHTS
from monai_kdsam.weights.sidecar import is_shipped
from monai_kdsam.weights.state_dict import load_tensors

__all__ = ["RECIPES", "TEACHERS", "fit"]


class Recipe(NamedTuple):
    """Phases of training in their order, and the overlays behind each."""

    phases: tuple[str, ...]
    overlays: tuple[str, ...]


RECIPES = {
    "plus": Recipe(("distill", "refine", "train"), ("recipes/plus",)),
    "paper": Recipe(("distill", "train"), ("recipes/paper",)),
    "promptable": Recipe(("train",), ("recipes/promptable", "recipes/any_looks")),
    "few_labels": Recipe(("train",), ("recipes/promptable", "recipes/any_looks", "recipes/few_labels")),
}
# What a recipe's teacher is: SAM as published, SAM fine-tuned on the images first, or a small network that learns from
# the images alone. The phases before the recipe's, and the overlays behind it.
TEACHERS = {
    "sam": Recipe((), ()),
    "adapted": Recipe(("adapt",), ("teachers/adapted",)),
    "scratch": Recipe(("adapt",), ("offline",)),
}
# Settings that name files of weights which no phase writes.
OUTSIDE = ("sam_checkpoint", "teacher_checkpoint", "vgg_weights", "imagenet_weights", "student_weights")
STARTS = ("imagenet_weights", "student_weights")  # of the first phase of a student alone
RECORD = "fit.json"


def fit(
    data: str | Path,
    *,
    recipe: str = "plus",
    teacher: str = "sam",
    bundle: str | Path = "kdsam_deepgrow_2d",
    overlays: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> str:
    """Train a recipe's student, evaluate it, draw some of its masks; what was interrupted goes on.

    Args:
        data: folder of `images` and `masks`, or a datalist (.json, .csv).
        recipe: one of `RECIPES`.
        teacher: one of `TEACHERS`.
        bundle: its folder; one that does not exist is made, with the settings in it that training and serving share.
        overlays: further config files, or their names, behind the recipe's.
        settings: of the configs, for each phase that uses them; "PHASE.KEY" is for one phase.
        device: as in "cpu" or "cuda:1".

    Returns:
        The Dice of the test images, and where everything is.

    Raises:
        UserError: about the first thing that a user can mend; before the first phase, where it can be known then.
    """
    for name, value, known in (("recipe", recipe, RECIPES), ("teacher", teacher, TEACHERS)):
        if value not in known:
            raise UserError(f"Expected `{name}` to be one of {', '.join(known)}, got {value!r}.")
    if not Path(data).exists():
        raise MissingFileError(
            f"Expected a folder with images/ and masks/, or a datalist (.json, .csv), got {data}, which does not exist."
        )
    plan = _Plan(Path(data), recipe, teacher, Path(bundle), tuple(overlays), dict(settings or {}))
    plan.prepare()
    try:
        for phase in plan.phases:
            plan.run(phase, {"device": device} if device else {})
    except KeyboardInterrupt:
        sys.stderr.write("\nThe same command goes on.\n")
        raise
    return plan.conclude()


class _Plan:
    """The phases of a fit and how far it has come, which is kept in the bundle's output folder."""

    def __init__(
        self,
        data: Path,
        recipe: str,
        teacher: str,
        bundle: Path,
        overlays: tuple[str, ...],
        settings: dict[str, Any],
    ) -> None:
        self.bundle = bundle
        self.settings = settings
        trained = RECIPES[recipe]
        has_teacher = "distill" in trained.phases
        before = TEACHERS[teacher] if has_teacher else Recipe((), ())
        listed = ("datasets/datalist",) if data.suffix.lower() in (".json", ".csv") else ()
        self.overlays = (*listed, *trained.overlays, *before.overlays, *overlays)
        cache = ("embed",) * (has_teacher and settings.get("cached_embeddings") is True)
        self.trained = (*before.phases, *trained.phases)
        self.phases = (*before.phases, *cache, *trained.phases, "evaluate")
        self.first = trained.phases[0]
        self.begins_at_random = teacher == "scratch"
        self.data = data
        about = {"data": str(data.resolve()), "recipe": recipe, "teacher": teacher, "overlays": list(overlays)}
        self.about = about | {"settings": settings}
        self.record = bundle / "output" / RECORD
        self.states: dict[str, str] = {}
        self.parsers: dict[str, ConfigParser] = {}

    def prepare(self) -> None:
        """Find or make the bundle; raise about what would end a later phase."""
        exists = (self.bundle / "configs").is_dir()
        # Before a bundle is made, or the corrected command would find one without the setting that was mistyped.
        self._check_settings(self.bundle if exists else bundle_path())
        if not exists:
            shared = self._shared(bundle_path())
            recipe = read_phase(bundle_path(), "train", *self.overlays)
            for share, name, none in (("crop_share", "close_up", 0), ("mask_share", "go_on", False)):
                if not self.settings.get(share, recipe[share]):
                    shared[name] = none  # a student that never saw any
            copy_bundle(self.bundle.parent, settings=shared, new_name=self.bundle.name)
        self._check_served()
        self._read_record()
        self._check_weights()

    def _shared(self, bundle: Path) -> dict[str, Any]:
        """What training makes of the settings that the served network has, where it is not the bundle's own."""
        served = network_settings(bundle)
        given = {key: value for key, value in self.settings.items() if key in served}
        trained = read_phase(bundle, "train", *self.overlays, **given)
        return {key: trained[key] for key in served if trained[key] != served[key]}

    def _check_served(self) -> None:
        differing = self._shared(self.bundle)
        if differing:
            told = ", ".join(f"{key}={value}" for key, value in differing.items())
            raise UserError(
                f"The bundle {self.bundle} serves another network than this fit would train, which has {told}. "
                "Name another `bundle`, which is then made for it, or set what the bundle has."
            )

    def _check_settings(self, bundle: Path) -> None:
        """Each setting is used by some phase; a mistyped one is told before a phase has taken an hour."""
        configs = {phase: read_phase(bundle, phase, *self.overlays) for phase in self.phases}
        known = set().union(*(_used(parser) for parser in configs.values()))
        for name in self.settings:
            phase, _, key = name.rpartition(".")
            if (phase and phase not in self.phases) or _root(key) not in known:
                names = [*known, *(f"{phase}.{key}" for phase in self.phases)] if phase else known
                phases, hint = ", ".join(self.phases), did_you_mean(name, names)
                raise UserError(f"No phase of this fit ({phases}) has the setting {name!r}.{hint}")

    def _read_record(self) -> None:
        if self.record.is_file():
            stored, about = json.loads(self.record.read_text(encoding="utf-8")), self.about
            self.states = stored.pop("phases")
            if stored != self.about:
                old, new = ({k: a[k] for k in a if a[k] != b.get(k)} for a, b in ((stored, about), (about, stored)))
                raise UserError(
                    f"{self.bundle} holds a fit with {json.dumps(old)}, and this one has "
                    f"{json.dumps(new)}. Go on with its settings, or name another `bundle`."
                )
        if self.settings.get("overwrite") is True:
            return
        for phase in self.trained:
            weights = Path(self.parser(phase).get_parsed_content("best_checkpoint"))
            if phase not in self.states and weights.exists() and not is_shipped(weights):
                raise ExistingFileError(
                    f"{weights} has the weights of an earlier run. Name another `bundle`, or replace them with the "
                    "setting overwrite=True."
                )

    def _check_weights(self) -> None:
        """All files from outside are there before the first phase begins."""
        missing: dict[Path, None] = {}
        for phase in self.trained:
            if self.states.get(phase) != "finished":
                missing |= dict.fromkeys(path for path in self._outside(phase) if not path.is_file())
        if not missing:
            return
        names = [(path, WEIGHTS.name_of(path.name)) for path in missing]
        fetched = [f"python -m monai_kdsam download {name} --dir {path.parent}" for path, name in names if name]
        advice = f" Run: {' && '.join(fetched)}." if fetched else ""
        if any(path.name.startswith("sam_") for path in missing):
            advice += " Where SAM's cannot be had, `--teacher scratch` has a small teacher learn from your masks alone."
        raise MissingFileError(f"Expected weights at {', '.join(map(str, missing))}.{advice}")

    def _outside(self, phase: str) -> list[Path]:
        """Files of weights that a phase reads and no phase writes."""
        parser = self.parser(phase)
        written = {self.parser(other).get_parsed_content("best_checkpoint") for other in self.trained}
        used = _used(parser)
        unused = {"vgg_weights"} if parser.get_parsed_content("perceptual_weight", default=0) == 0 else set()
        unused |= {"imagenet_weights"} if parser.get("student_weights") else set()
        found = [find_student(parser.get_parsed_content(key)) for key in OUTSIDE if key in used - unused]
        return [Path(path) for path in found if path is not None and path not in written]

    def parser(self, phase: str) -> ConfigParser:
        """The merged config of a phase."""
        if phase not in self.parsers:
            self.parsers[phase] = read_phase(self.bundle, phase, *self.overlays, **self.own(phase))
        return self.parsers[phase]

    def own(self, phase: str) -> dict[str, Any]:
        """The settings of a phase: those that it uses, and where it reads."""
        parser = read_phase(self.bundle, phase, *self.overlays)
        used = _used(parser)
        found: dict[str, Any] = {"dataset_dir": self.data}
        backbone = self.settings.get("backbone", parser.get("backbone"))
        begins = any(self.settings.get(key, parser.get(key)) for key in STARTS)
        if phase == self.first and not begins and backbone in WEIGHTS:
            file = self.bundle / "models" / WEIGHTS[backbone].filename
            found |= {} if self.begins_at_random else {"imagenet_weights": file}
        # What is for this phase alone comes last.
        for name, value in sorted(self.settings.items(), key=lambda item: "." in item[0]):
            chosen, _, key = name.rpartition(".")
            if _root(key) in used and chosen in ("", phase) and (key not in STARTS or phase == self.first):
                found[key] = value
        return found

    def run(self, phase: str, settings: Mapping[str, Any]) -> None:
        """Run a phase, or go on with it, unless it is finished; say what is typed for it."""
        if self.states.get(phase) == "finished" or self._is_through(phase):
            print(f"{phase}: finished", flush=True)
            self._note(phase, "finished")
            return
        given = self.own(phase) | dict(settings)
        if phase in self.trained and phase in self.states:
            # Without a state it was interrupted in its first epoch: what it has written is its own.
            given["resume" if self._state(phase).is_file() else "overwrite"] = True
        self._note(phase, "begun")
        print(f"\n$ {phase_command(self.bundle, phase, *self.overlays, **given)}\n", flush=True)
        run_phase(self.bundle, phase, *self.overlays, **given)
        self._note(phase, "finished")

    def _state(self, phase: str) -> Path:
        return Path(self.parser(phase).get_parsed_content("output_dir")) / f"{phase}_state.pt"

    def _is_through(self, phase: str) -> bool:
        """Whether a phase was interrupted after its last epoch."""
        if phase not in self.states or phase not in self.trained or not self._state(phase).is_file():
            return False
        epochs: int = self.parser(phase).get_parsed_content("epochs")
        return load_tensors(self._state(phase))["epoch"] >= epochs

    def _note(self, phase: str, state: str) -> None:
        self.states[phase] = state
        write_text(self.record, json.dumps(self.about | {"phases": self.states}, indent=1))

    def conclude(self) -> str:
        """Draw some test images, and tell the Dice of all."""
        parser = self.parser("evaluate")
        report = Path(parser.get_parsed_content("report_dir"))
        items = parser.get_parsed_content("splits")[parser.get_parsed_content("evaluated_split")]
        sheet = save_predicted_sheet(self.bundle, items, self.bundle / "output" / "pictures.png")
        found = read_mean_dice(report)
        head = "".join(f"{name:>10}" for name in found)
        row = "".join(f"{value:10.3f}" for value in found.values())
        return (
            f"\n{'mean Dice':32}{head}\n{f'of {len(items)} test images':32}{row}\n\n"
            f"The trained bundle is {self.bundle}, each image's Dice in {report}, some of the masks in {sheet}.\n"
            f"Click in a viewer:  python -m monai_kdsam label --model {self.bundle} --studies DIR"
        )


def _used(parser: ConfigParser) -> set[str]:
    config: Any = parser.config
    return used_keys(config)


def _root(key: str) -> str:
    return re.split("#|::", key)[0]
