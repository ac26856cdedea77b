# SPDX-License-Identifier: Apache-2.0
"""What huggingface_hub's own client asks a hub for, answered from memory: repositories, revisions, files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """A hub that runs at `address`.

    Attributes:
        commits: of each repository, its files by commit, in order; the last is `main`.
        gated: repositories whose files nobody may have yet.
        token: without it nothing can be pushed.
        failure: a status that answers everything; 0: none.
    """

    address: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    failure: int = 0
    created: list[dict[str, object]] = field(default_factory=list)

    def add(self, repo: str, files: Files) -> str:
        """Commit files to those that a repository has."""
        known = self.commits.setdefault(repo, {})
        whole = {**(list(known.values())[-1] if known else {}), **files}
        commit = hashlib.sha1(repr((len(known), sorted(whole))).encode()).hexdigest()
        known[commit] = whole
        return commit

    def add_folder(self, repo: str, folder: Path) -> str:
        return self.add(
            repo, {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        )

    def files(self, repo: str) -> Files:
        """Those of `main`."""
        return list(self.commits[repo].values())[-1]


class _RefusedError(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object) -> None:
        self._send(json.dumps(content).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"", status, X_Error_Code=code, X_Error_Message=code)
        raise _RefusedError

    def _revision(self, repo: str, revision: str) -> tuple[str, Files]:
        if repo not in self.hub.commits:
            self._refuse(401, "RepoNotFound")
        known = self.hub.commits[repo]
        commit = list(known)[-1] if known and revision == "main" else revision
        if known and commit not in known:
            self._refuse(404, "RevisionNotFound")
        return commit, known.get(commit, {})

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        try:
            if self.hub.failure:
                self._refuse(self.hub.failure, "")
            if self.command == "POST":
                self._post(path, body)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/([^/]+))?)?", path):
                self._look(found[1], found[2] or "revision", found[3] or "main")
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(*found.groups())
            else:
                self._refuse(404, "")
        except _RefusedError:
            pass

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _look(self, repo: str, what: str, revision: str) -> None:
        commit, files = self._revision(repo, revision)
        if what == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            self._json({"branches": [branch], "tags": [], "converts": []})
        elif what == "tree":
            self._json([{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()])
        else:
            self._json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def _file(self, repo: str, revision: str, name: str) -> None:
        commit, files = self._revision(repo, revision)
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
        if name not in files:
            self._refuse(404, "EntryNotFound")
        self._send(files[name], ETag=f'"{_oid(files[name])}"', X_Repo_Commit=commit)

    def _post(self, path: str, body: bytes) -> None:
        if path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, "")
        if path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self.hub.created.append(asked)
            repo = f"{asked['organization']}/{asked['name']}"
            self.hub.commits.setdefault(repo, {})
            self._json({"url": f"{self.hub.address}/{repo}", "id": repo})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            commit = self.hub.add(found[1], {f["path"]: base64.b64decode(f["content"]) for f in files})
            url = f"{self.hub.address}/{found[1]}/commit/{commit}"
            self._json({"commitUrl": url, "commitOid": commit, "commitMessage": "", "commitDescription": ""})
        else:
            self._refuse(404, "")


def _oid(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """A hub on this machine, as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
