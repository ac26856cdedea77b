# SPDX-License-Identifier: Apache-2.0
"""What a GPU adds: mixed precision, nccl, memory, compilation. The same tests run on a CPU in miniature."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_kdsam.networks import TeacherEncoder, build_teacher
from monai_kdsam.phases import phase_files

ROOT = Path(__file__).parents[1]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
DEVICES = ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, needs_gpu], id="gpu")]


def losses(output: Path, phase: str) -> list[float]:
    """What the only run logged of each step."""
    events = EventAccumulator(str(output / "runs" / f"{phase}_001")).Reload()
    return [entry.value for entry in events.Scalars("loss")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "phase", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adapt", "distill", "refine"))]
)
def test_a_phase_in_half_precision_begins_with_the_loss_in_float32(trained, phase, device):
    kinds = {"float32": {"amp": False}, "bfloat16": {"amp": False, "bfloat16": True}}
    if device != "cpu":
        kinds["float16"] = {"amp": True}
    found = {}
    for kind, settings in kinds.items():
        output = trained.folder / kind
        trained.run(phase, device=device, output_dir=output, best_checkpoint=output / "best.pt", **settings)
        found[kind] = losses(output, phase)
    for values in found.values():
        assert torch.tensor(values).isfinite().all()
        assert values[0] == pytest.approx(found["float32"][0], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_one_process_of_a_group_has_the_losses_of_one_without(trained, device):
    alone, group = trained.folder / "alone", trained.folder / "group"
    trained.run("train", device=device, amp=False, output_dir=alone, best_checkpoint=alone / "model.pt")
    names = phase_files(trained.bundle, "train", "multi_gpu_train", "offline", "smoke")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(names), "--bundle_root", str(trained.bundle)]
    command += ["--dataset_dir", str(trained.folder / "phantoms"), "--amp", "False", "--device", device]
    command += ["--output_dir", str(group), "--best_checkpoint", str(group / "model.pt"), "--progress", "False"]
    subprocess.run(command, check=True, timeout=180)
    assert losses(group, "train") == pytest.approx(losses(alone, "train"), rel=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_goes_on_on_another_device_and_back(trained, device):
    output = trained.folder / "moving"
    for epochs, where in enumerate(("cpu", device, "cpu"), start=1):
        settings = {"output_dir": output, "best_checkpoint": output / "model.pt", "resume": epochs > 1}
        trained.run("train", device=where, epochs=epochs, amp=False, **settings)
        state = torch.load(output / "train_state.pt", weights_only=True, map_location="cpu")
        assert state["epoch"] == epochs


@pytest.mark.parametrize(
    ("device", "kind", "size"),
    [("cpu", "vit_micro", 64), pytest.param("cuda:0", "vit_h", 1024, marks=[pytest.mark.gpu, needs_gpu], id="gpu")],
)
def test_a_teacher_embeds_an_image_in_16_gib(device, kind, size):
    with torch.device(device):
        encoder = TeacherEncoder(build_teacher(kind, image_size=size), autocast=torch.bfloat16)
        embedding = encoder(torch.rand(1, 3, size, size))
    assert embedding.shape == (1, 256, size // 16, size // 16)
    if device != "cpu":
        assert torch.cuda.max_memory_allocated() < 16 * 2**30


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "eager"), pytest.param(*DEVICES[1].values, "inductor", marks=DEVICES[1].marks, id="gpu")],
)
def test_a_compiled_teacher_gives_the_same_embedding(device, backend):
    with torch.device(device):
        encoder = TeacherEncoder(build_teacher("vit_micro", image_size=64))
        image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(torch.compile(encoder, backend=backend)(image), encoder(image), atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_tensorrt_compiles_the_student(trained):
    pytest.importorskip("tensorrt")
    pytest.importorskip("polygraphy")
    trained.run("inference", "inference_trt", small=False, dataset_dir=trained.folder / "phantoms" / "images")
    assert list(trained.output.rglob("*_mask.png"))


@pytest.mark.slow
def test_what_runs_on_a_gpu_machine_runs_in_miniature_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    scripts, pack, out = ROOT / "benchmarks" / "gpu", tmp_path / "pack.tar.xz", tmp_path / "out"
    subprocess.run([scripts / "pack.sh", pack, "--mini", "--no-code"], check=True, timeout=120)
    subprocess.run([scripts / "run.sh", pack, out, "speed", "student", "--mini"], check=True, timeout=300)
    assert {"gpu_none.json", "model.json", "model.pt", "speed.jsonl", "student.log"} <= {
        file.name for file in out.iterdir()
    }
