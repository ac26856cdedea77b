# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from monai_kdsam.label.dicomweb import check_dicomweb

DICOM_JSON = "application/dicom+json"


@pytest.fixture
def answering():
    """A server that gives one answer; what it was asked is in `asked`."""
    servers = []

    def start(status: int, kind: str, body: bytes) -> HTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.server.asked.append((self.path, dict(self.headers)))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.address = [], f"http://127.0.0.1:{server.server_port}/dicom-web"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (200, DICOM_JSON, b"[]"),
        (200, DICOM_JSON, b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}}]'),
        (200, "application/json", b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}}]'),
        (204, DICOM_JSON, b""),
    ],
)
def test_a_dicomweb_server_is_accepted_with_studies_and_without(answering, status, kind, body):
    server = answering(status, kind, body)
    check_dicomweb(f"{server.address}/")
    ((path, headers),) = server.asked
    assert path == "/dicom-web/studies?limit=1"
    assert headers["Accept"] == DICOM_JSON


@pytest.mark.parametrize(
    ("status", "kind", "body", "message"),
    [
        (200, "text/html", b"<html>", "answered 200 with text/html"),
        (200, "application/json", b'["8a8cf898-ca27c490"]', "answered 200 with application/json"),
        (200, "application/json", b"[]", "answered 200 with application/json"),
        (200, DICOM_JSON, b'{"error": 1}', "answered 200"),
        (404, "text/html", b"", "answered 404 with text/html"),
        (500, "application/json", b"[]", "answered 500"),
    ],
)
def test_what_is_no_dicomweb_server_is_told(answering, status, kind, body, message):
    with pytest.raises(ValueError, match=f"Expected a DICOMweb server at `--studies`.*{message}"):
        check_dicomweb(answering(status, kind, body).address)


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_user_names_the_variables(answering, status):
    with pytest.raises(OSError, match="MONAI_LABEL_DICOMWEB_USERNAME"):
        check_dicomweb(answering(status, "text/html", b"").address)


def test_the_user_and_the_prefix_of_the_servers_variables_are_used(answering, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "reader")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "päss")
    monkeypatch.setenv("MONAI_LABEL_QIDO_PREFIX", "rs")
    server = answering(200, DICOM_JSON, b"[]")
    check_dicomweb(server.address)
    ((path, headers),) = server.asked
    assert path == "/dicom-web/rs/studies?limit=1"
    # As requests encodes it, with which MONAI Label then asks.
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == "reader:päss".encode("latin-1")


def test_a_password_that_monai_label_cannot_send_is_told(answering, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "reader")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "пароль")
    with pytest.raises(ValueError, match="in the letters of Latin-1"):
        check_dicomweb(answering(200, DICOM_JSON, b"[]").address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/dicom-web", "http://nowhere.invalid", "http://[::1"])
def test_an_address_where_nobody_answers_is_told(address):
    with pytest.raises(OSError, match="does not answer"):
        check_dicomweb(address)
