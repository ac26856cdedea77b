# SPDX-License-Identifier: Apache-2.0
"""Config files hold values of the types that are meant, each with a comment, and keep both when they are edited."""

from __future__ import annotations

import json
import re

import pytest
import torch
from monai.bundle import ConfigParser

from benchmarks.docs_tables import read_knobs
from monai_kdsam.bundles import bundle_path, config_path, copy_bundle
from monai_kdsam.config_files import edit_config, list_configs, own_values, parse_config, parse_value

CONFIGS = bundle_path() / "configs"
FILES = [*CONFIGS.glob("*.yaml"), *config_path().rglob("*.yaml")]
TEXT = """\
# a heading
epochs: 20          # passes over the training images
rate: 0.0001        # of learning, # and so on
prompts: [box, none]  # kinds
name: "a # b"
part:
  of: several lines
"""


def scalars(value):
    """All values of a config without those that hold others."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from scalars(part)
    else:
        yield value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_text_is_what_yaml_1_1_makes_of_a_number_or_of_a_switch(file) -> None:
    """1e-4 is a text, and `no` a False, for PyYAML."""
    for value in scalars(ConfigParser.load_config_file(file)):
        assert not isinstance(value, str) or parse_value(value) == value
    assert not re.search(r"(?im)[:\[,-] *(on|off|yes|no|y|n|~)\b *([],}#]|$)", file.read_text())


def kind(value):
    if value is None or (isinstance(value, str) and value[:1] in "$@%"):
        return None
    return float if type(value) is int else type(value)


def is_literal(value):
    parts = value if isinstance(value, list) else [value]
    return all(part is None or kind(part) in (bool, float, str) for part in parts)


def test_a_knob_has_one_type_in_all_configs_and_overlays() -> None:
    kinds: dict[str, dict[type, str]] = {}
    for file in [*FILES, CONFIGS / "inference.json"]:
        for key, value in ConfigParser.load_config_file(file).items():
            if (found := kind(value)) is not None:
                kinds.setdefault(key, {})[found] = file.name
    assert {key: found for key, found in kinds.items() if len(found) > 1} == {}
    assert kinds["learning_rate"].keys() == kinds["epochs"].keys() == {float}
    assert kinds["augment"].keys() == {bool}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_says_what_it_is_for_and_is_read_without_scrolling(file) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_knob_of_the_bundle_has_a_comment(file) -> None:
    commented = {key: value for knobs in read_knobs(file).values() for key, value, _ in knobs}
    config = ConfigParser.load_config_file(file)
    for key, value in config.items():
        if key.isidentifier() and key != "phase" and is_literal(value):
            assert key in commented, key
    for key, value in commented.items():
        assert parse_config(f"{key}: {value}", ".yaml")[key] == config[key]


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_the_schedule_of_the_learning_rate_begins_with_any_number_of_steps() -> None:
    share = ConfigParser.load_config_file(CONFIGS / "train.yaml")["lr_scheduler"]["pct_start"]
    for steps in range(1, 500):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, pct_start=share)
        if steps > 1:
            schedule.step()


def test_configs_are_read_as_monai_reads_them() -> None:
    for file in list_configs(CONFIGS):
        assert parse_config(file.read_text(), file.suffix) == ConfigParser.load_config_file(file)
    assert own_values(CONFIGS)["learning_rate"]["adapt.yaml"] == 1e-5


def test_an_edited_config_keeps_all_but_the_values() -> None:
    edited = edit_config(TEXT, {"prompts": ["click"], "rate": 1e-5, "epochs": 5, "name": None})
    old = ("20 ", "0.0001", "[box, none]", '"a # b"')
    expected = TEXT
    for was, becomes in zip(old, ("5 ", "1.0e-05", "[click]", "null"), strict=True):
        expected = expected.replace(was, becomes)
    assert edited == expected
    assert parse_config(edited, ".yaml")["rate"] == 1e-5


@pytest.mark.parametrize(
    "value", [True, "no", "1e-4", "$@epochs", "@epochs", "a: b # c", [0, 0.02], 1e-12, "ü", ""], ids=str
)
def test_any_value_comes_back_as_it_was_set(value) -> None:
    assert edit_config(TEXT, {}) == TEXT
    assert parse_config(edit_config(TEXT, {"name": value}), ".yaml")["name"] == value


def test_what_has_several_lines_is_not_set() -> None:
    with pytest.raises(ValueError, match="Expected a setting of one value, got 'part', which has several lines"):
        edit_config(TEXT, {"part": 1})


def test_a_copied_bundle_keeps_its_comments(tmp_path) -> None:
    copied = (
        copy_bundle(tmp_path, settings={"image_size": 512, "backbone": "timm/repvit_m1", "augment": False}) / "configs"
    )
    for name in ("train.yaml", "inference.json"):
        before, after = ((folder / name).read_text().splitlines() for folder in (CONFIGS, copied))
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert {re.match(r'"?(\w+)', new.strip())[1] for _, new in changed} <= {"image_size", "backbone", "augment"}
        assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in changed)
    assert json.loads((copied / "inference.json").read_text())["backbone"] == "timm/repvit_m1"
