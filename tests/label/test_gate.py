# SPDX-License-Identifier: Apache-2.0
"""Requests as browsers and others send them, to the gate before a plain application."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("starlette", reason="comes with MONAI Label; `nox -s label` runs these tests")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from monai_kdsam.label.gate import Gate, read_origin

HERE = "http://127.0.0.1:8000"
FOREIGN = "https://news.example.org"


def client(**settings) -> TestClient:
    async def echo(request):
        return PlainTextResponse(str(len(await request.body())))

    inner = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE"])])
    return TestClient(Gate(inner, **settings), base_url=HERE)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://127.0.0.1:3000", "https://127.0.0.1:8000.example.org"])
def test_a_page_of_another_origin_is_refused(method, origin):
    asked = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
    answer = client().request(method, "/datastore/label", headers=asked)
    assert answer.status_code == 403
    assert f"pages of {origin} are refused" in answer.json()["detail"]
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", [None, HERE])
def test_programs_and_the_servers_own_pages_are_let_in(origin):
    answer = client().put("/session/", headers={"Origin": origin} if origin else {}, content=b"abc")
    assert (answer.status_code, answer.text) == (200, "3")
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"


def test_an_allowed_origin_may_read_and_ask_for_permission():
    allowed = client(origins=[FOREIGN + "/"])
    assert allowed.get("/info/", headers={"Origin": FOREIGN}).headers["access-control-allow-origin"] == FOREIGN
    asked = {"Origin": FOREIGN, "Access-Control-Request-Method": "PUT"}
    assert allowed.options("/session/", headers=asked).status_code == 200
    assert allowed.get("/info/", headers={"Origin": "https://example.org"}).status_code == 403


@pytest.mark.parametrize("host", ["rebound.example.org:8000", "127.0.0.1.example.org", "user@example.org", "[", ""])
def test_a_name_that_was_pointed_at_the_machine_is_refused(host):
    answer = client().get("/info/", headers={"Host": host})
    assert answer.status_code == 421
    assert "--allow-origin" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost:8000", "10.1.2.3", "[::1]:8000", f"{socket.gethostname()}:8000"])
def test_addresses_and_the_machines_own_names_are_let_in(host):
    assert client().get("/info/", headers={"Host": host}).status_code == 200
    assert client().post("/", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("host", ["label.example.org", "127.0.0.1:8000"])
def test_a_proxy_may_keep_the_public_name_or_not(host):
    public = "https://label.example.org"
    headers = {"Host": host, "Origin": public}
    assert client(origins=[public]).post("/", headers=headers).status_code == 200
    assert client().post("/", headers=headers).status_code in (403, 421)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_beyond_the_limit_is_refused(in_pieces):
    content = iter([b"x" * 600, b"x" * 600]) if in_pieces else b"x" * 1200
    answer = client(max_upload=1000).put("/session/", content=content)
    assert answer.status_code == 413
    assert "--max-upload" in answer.text
    assert client(max_upload=1200).put("/session/", content=b"x" * 1200).text == "1200"


@pytest.mark.parametrize(
    "path", ["/proxy/dicom/%2e%2e/instances", "/proxy/dicom/a%2f..%2finstances", "/a/%252e%252e/b"]
)
def test_no_path_leads_upwards(path):
    assert client().get(path).status_code == 400


@pytest.mark.parametrize("text", ["label.example.org", "ftp://a", "https://a/b", "*", "", "http://["])
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(ValueError, match="Expected `--allow-origin` of the kind"):
        read_origin(text)
