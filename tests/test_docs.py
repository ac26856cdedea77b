# SPDX-License-Identifier: Apache-2.0
"""What the documentation tells a user to type is typed here; its links, tables and names lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.docs_tables import RESULTS, fill
from monai_kdsam.__main__ import main
from monai_kdsam.data.phantoms import write_phantoms
from monai_kdsam.export import export_bundle
from monai_kdsam.inferers import BundlePredictor, bundle_predictor
from monai_kdsam.networks import build_kdsam, save_weights
from monai_kdsam.parser import build_parser
from monai_kdsam.weights.download import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "howto" / "extending.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "docs" / "tutorials" / "quickstart.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
IMAGES = (ROOT / "docs" / "howto" / "images.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """The Python commands of a page, each in a line."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("python -m monai")]


def test_the_commands_of_the_quick_start_run_in_their_order(trained, tmp_path, monkeypatch):
    """As typed, but small: DATA is generated, a small teacher takes SAM's place, nothing is downloaded."""
    monkeypatch.chdir(tmp_path)
    shipped = trained.bundle.rename(tmp_path / "shipped")
    monkeypatch.setattr(bundle_predictor, "shipped_bundle", lambda: shipped)
    write_phantoms("DATA", per_kind=8, size=72)
    small = ["--teacher", "scratch", "--overlays", "smoke", "--set", "progress=False"]
    ran = []
    for command in commands(QUICKSTART):
        words = shlex.split(command)[3:]
        ran.append(words[0])
        if words[0] == "download":
            assert words[1] in WEIGHTS
            Path(words[-1]).mkdir(parents=True, exist_ok=True)
        elif words[0] == "fit":
            assert main([*(word.replace("image_size=512", "image_size=64") for word in words), *small]) == 0
        elif words[0] == "segment":
            assert main([word.replace("PICTURE", "DATA/images/polyp_000.png") for word in words]) == 0
        else:
            build_parser().parse_args(words)
    assert ran == ["segment", "segment", "download", "download", "fit", "segment", "report"]
    assert Path("kdsam_segmented/polyp_000_overlay.png").is_file()
    assert len(list(Path("masks").glob("*_mask.png"))) == 16


def test_the_readme_has_commands_of_the_quick_start_and_others_that_parse():
    own = [command for command in commands(README) if command not in commands(QUICKSTART)]
    assert len(own) <= len(commands(README)) - 3
    for command in own:
        build_parser().parse_args(shlex.split(command)[3:])


def test_the_python_of_the_readme_and_of_the_reference_runs(trained, monkeypatch):
    monkeypatch.chdir(trained.folder)
    (trained.folder / "image.png").write_bytes(next((trained.folder / "phantoms" / "images").iterdir()).read_bytes())
    predictor, network, _ = blocks(API, "python")
    names: dict[str, object] = {"array": np.zeros((24, 32), np.uint8)}
    for block in (*blocks(README, "python"), predictor):
        exec(block.replace("[40, 30, 210, 180]", "[4, 3, 21, 18]").replace("[[120, 90]]", "[[12, 9]]"), names)
    assert set(np.unique(names["mask"])) <= {0, 1}
    names |= {
        "image": torch.zeros(2, 3, 64, 64),
        "points": torch.ones(2, 1, 2),
        "labels": torch.ones(2, 1, dtype=torch.long),
    }
    with torch.no_grad():
        exec(network.replace("resnet50", "resnet18").replace("image_size=1024", "image_size=64"), names)
    assert names["logits"].shape == (2, 1, 64, 64)
    assert names["embedding"].shape == (2, 256, 4, 4)
    assert names["masks"].shape == (2, 1, 16, 16)


@pytest.fixture
def examples(trained, monkeypatch):
    """The overlays and classes of docs/howto/extending.md, written where the page says."""
    parts = "\n".join(blocks(EXTENDING, "python"))
    (trained.bundle / "my_parts.py").write_text(
        "from __future__ import annotations\n" + parts.replace("from __future__ import annotations\n", "")
    )
    for block in blocks(EXTENDING, "yaml"):
        name = re.match(r"# (\w+\.yaml)", block)[1]
        (trained.folder / "configs" / name).write_text(block)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the bundle's run adds the bundle to it
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return trained


def test_own_student(examples):
    examples.run("distill", "own_student")
    state = torch.load(examples.models / "distilled.pt", weights_only=True)
    assert state["image_encoder.0.weight"].shape == (64, 3, 7, 7)


def test_own_student_in_predictor_report_and_export_each_with_its_bundle_s_own_module(examples, tmp_path, monkeypatch):
    """Two bundles with different modules of the same name."""
    pictures = examples.folder / "phantoms" / "images"
    first = next(pictures.iterdir())
    for name, channels in (("one", 8), ("two", 16)):
        bundle = shutil.copytree(examples.bundle, tmp_path / name)
        overlay = yaml.safe_load((examples.folder / "configs" / "own_student.yaml").read_text())
        inference = json.loads((bundle / "configs" / "inference.json").read_text())
        (bundle / "configs" / "inference.json").write_text(json.dumps(inference | overlay))
        parts = (examples.bundle / "my_parts.py").read_text().replace("64", str(channels))
        (bundle / "my_parts.py").write_text(parts)
        spec = importlib.util.spec_from_file_location("elsewhere", bundle / "my_parts.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        save_weights(build_kdsam(module.PlainEncoder(), image_size=64), bundle / "models" / "model.pt")
    assert BundlePredictor(tmp_path / "one")(first).shape == BundlePredictor(tmp_path / "two")(first).shape
    assert BundlePredictor(tmp_path / "one").network.image_encoder[0].out_channels == 8
    folder, _ = export_bundle(tmp_path / "one", "torchscript", images=pictures)
    assert (folder / "encoder.ts").is_file()


def test_a_trunk_of_timm(examples):
    examples.run("distill", "offline", "smoke", "timm_student", small=False)
    state = torch.load(examples.models / "distilled.pt", weights_only=True)
    assert any(name.startswith("image_encoder.trunk.stages_3") for name in state)


def test_own_teacher(examples):
    from monai_kdsam.networks import build_student

    torch.save(build_student("resnet34", image_size=64).state_dict(), examples.models / "resnet34.pt")
    examples.run("distill", "own_teacher")


def test_own_loss_is_summed_and_logged_under_its_name(examples, caplog):
    with caplog.at_level("INFO"):
        examples.run("distill", "own_loss", log_interval=1)
    assert "cosine: " in caplog.text
    assert "mse: " in caplog.text


def test_another_metric_is_computed_and_logged(examples, caplog):
    with caplog.at_level("INFO"):
        examples.run("train", "own_metric")
    assert "val_iou: " in caplog.text


def test_another_metric_selects_the_weights(examples, caplog):
    with caplog.at_level("INFO"):
        examples.run("train", "own_selection")
    assert "Key metric: val_iou best value" in caplog.text


def test_the_datalist_of_the_page_is_read(tmp_path):
    import json

    from PIL import Image

    from monai_kdsam.data import read_dataset

    (content,) = blocks(IMAGES, "json")
    items = [item for split in json.loads(content).values() for item in split]
    for item in items:
        for path in (tmp_path / item[key] for key in ("image", "label") if key in item):
            Image.new("L", (8, 8), 1).save(path.with_suffix(".png"))
            path.with_suffix(".png").rename(path)
    (tmp_path / "list.json").write_text(content)
    read = read_dataset("datalist", tmp_path / "list.json")
    assert [item["subject"] for item in read] == ["17", "18", "19", "20"]
    assert [item.get("official_split") for item in read] == ["training", "validation", "test", None]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_pages_link_to_pages_and_headings_that_exist():
    for page in PAGES:
        for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not heading or heading in headings(path), f"{page.name}: {target}#{heading}"


def headings(page):
    """Names of a page's headings, as forges make them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def test_readme_links_to_no_log_and_pages_name_no_benchmark_that_is_gone():
    assert "docs/log" not in README
    for page in PAGES:
        for name in re.findall(r"benchmarks/\w+\.\w+", page.read_text(encoding="utf-8")):
            assert "log" in page.parts or (ROOT / name).is_file(), f"{page.name}: {name}"


def test_every_page_but_the_log_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert set(re.findall(r"[\w/]+\.md", navigation)) == {page for page in pages if not page.startswith("log/")}


def test_the_tables_of_the_pages_are_those_of_the_results():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert fill(text) == text, f"{page.name}: run python benchmarks/docs_tables.py"
    for result in RESULTS.glob("*.json"):
        assert {"command", "date", "machine"} <= json.loads(result.read_text(encoding="utf-8")).keys(), result.name


@pytest.mark.parametrize("name", ["results", "latency"])
def test_the_figures_in_the_text_are_those_of_the_results_or_of_the_log(name):
    logs = (ROOT / "docs" / "log").iterdir()
    measured = "".join(path.read_text(encoding="utf-8") for path in (*RESULTS.iterdir(), *logs))
    page = (ROOT / "docs" / "explanation" / f"{name}.md").read_text(encoding="utf-8")
    assert not [figure for figure in re.findall(r"\b0\.\d{2,}\b", page) if figure not in measured]


@pytest.mark.parametrize("name", re.findall(r"^::: (.+)$", API, re.MULTILINE))
def test_the_python_api_of_the_site_is_what_the_packages_export(name):
    assert importlib.import_module(name).__all__


def test_the_compose_file_starts_the_server_with_options_that_it_has():
    folder = ROOT / "docs" / "howto" / "operate"
    compose = yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))
    unit = (folder / "kdsam-label.service").read_text(encoding="utf-8").replace("\\\n", "")
    for command in (compose["services"]["label"]["command"], re.search(r"-m monai_kdsam (.+)", unit)[1]):
        arguments = build_parser().parse_args(shlex.split(command.replace(":?}", "}")))
        assert arguments.allow_origin
        assert arguments.studies.endswith("/dicom-web")


def test_the_tests_that_the_security_page_names_exist():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`([\w/]+\.py|test_\w+)`", page):
        assert (ROOT / name).is_file() or f"def {name}(" in tests, name


def test_the_architecture_page_names_files_that_exist():
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(monai_kdsam/[\w/]+\.py)`", page):
        assert (ROOT / name).is_file(), name
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "monai_kdsam").rglob("*.py")}
    assert set(re.findall(r"\w+\.py", picture)) <= files
