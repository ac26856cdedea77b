# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from monai_kdsam.deploy.prompt_file import read_prompts

BOX = {"series_instance_uid": "1.2", "box": [1, 2, 30, 40]}
SIZE = (64, 48)


def write(path, *entries):
    path.write_text(json.dumps({"prompts": entries}))
    return path


def test_points_and_boxes_become_the_requests_of_the_hosts(tmp_path):
    points = {"sop_instance_uid": "1.2.3", "points": [[5, 6], [7, 8.5]], "labels": [1, 0]}
    prompts = read_prompts(write(tmp_path / "p.json", BOX, points))
    series, still = prompts.find("1.2", "9", 1, SIZE), prompts.find("1.2", "1.2.3", 1, SIZE)
    assert series == (("1.2", None), {"foreground": [], "background": [], "roi": [1, 2, 30, 40]})
    assert still == (("1.2.3", None), {"foreground": [[5, 6]], "background": [[7, 8.5]], "roi": None})
    assert prompts.find("other", "9", 1, SIZE) is None


def test_the_file_of_the_documentation_is_read(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "howto" / "deploy.md"
    (block,) = re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "p.json").write_text(block)
    assert len(read_prompts(tmp_path / "p.json").requests) == 3


def test_the_nearest_prompt_wins_frame_before_instance_before_series(tmp_path):
    instance = {"sop_instance_uid": "1.2.3", "box": [0, 0, 9, 9]}
    frame = {**instance, "frame": 4, "box": [0, 0, 5, 5]}
    prompts = read_prompts(write(tmp_path / "p.json", BOX, instance, frame))
    boxes = [prompts.find("1.2", uid, number, SIZE)[1]["roi"] for uid, number in (("1.2.3", 4), ("1.2.3", 3), ("9", 4))]
    assert boxes == [[0, 0, 5, 5], [0, 0, 9, 9], [1, 2, 30, 40]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [1]}, "expected keys among .*, got 'boxes'"),
        ({"box": [1, 2, 3]}, r"expected `box` to be \[x1, y1, x2, y2\], got \[1, 2, 3\]"),
        ({"box": "all"}, "expected `box` to be a list, got 'all'"),
        ({"box": None}, "expected `points`, `box` or both"),
        ({"box": [1, 2, True, 4]}, "expected `box`"),
        ({"points": [[1]], "labels": [1]}, r"expected `points` to be \[\[x, y\], ...\]"),
        ({"points": [[1, 2]]}, "expected in `labels` a 1 or 0 for each of 1 `points`, got "),
        ({"points": [[1, 2]], "labels": [2]}, "expected in `labels` a 1 or 0"),
        ({"labels": [1]}, "expected in `labels` a 1 or 0 for each of 0 `points`"),
        ({"sop_instance_uid": "1.2.3"}, "expected either `sop_instance_uid` or `series_instance_uid`"),
        ({"series_instance_uid": 12}, "expected either `sop_instance_uid` or `series_instance_uid`, a text"),
        ({"frame": 1}, "expected `frame` to be a whole number from 1, beside `sop_instance_uid`"),
    ],
)
def test_an_entry_of_another_form_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"p.json, prompt 2: {message}"):
        read_prompts(write(tmp_path / "p.json", {"sop_instance_uid": "7", "box": [0, 0, 9, 9]}, BOX | change))


def test_frames_are_counted_from_one(tmp_path):
    with pytest.raises(ValueError, match=r"whole number from 1, .* got 0"):
        read_prompts(write(tmp_path / "p.json", {"sop_instance_uid": "7", "frame": 0, "box": [0, 0, 9, 9]}))


def test_two_prompts_for_one_image_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"prompt 2: there is a prompt for 1.2 already"):
        read_prompts(write(tmp_path / "p.json", BOX, BOX))


@pytest.mark.parametrize("content", ["[]", '{"prompts": []}', '{"prompts": {}}', '{"prompts": [1], "x": 2}'])
def test_a_file_of_another_form(tmp_path, content):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=r'to be \{"prompts": \[...\]\} with at least one entry'):
        read_prompts(tmp_path / "p.json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_file_that_is_no_json(tmp_path, content):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(ValueError, match="to be JSON"):
        read_prompts(tmp_path / "p.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="`--prompts`"):
        read_prompts(tmp_path / "p.json")


def test_a_prompt_beside_its_image_names_the_part_and_the_size(tmp_path):
    prompts = read_prompts(write(tmp_path / "p.json", BOX | {"box": [21, 2, 30, 40]}))
    with pytest.raises(ValueError, match=r"prompt for 1.2: Expected `box` to cover some of the image of 20 x 48"):
        prompts.find("1.2", "9", 1, (20, 48))


def test_a_prompt_for_no_image_is_named(tmp_path):
    prompts = read_prompts(write(tmp_path / "p.json", BOX))
    prompts.check_all_used({("1.2", None)})
    with pytest.raises(ValueError, match=r"has a prompt for 1.2, which is not among the images"):
        prompts.check_all_used(set())
