# SPDX-License-Identifier: Apache-2.0
"""What stands before the annotation server: it lets in no page of another origin, no foreign name, and no flood.

No password is asked for here. A server that listens on this machine alone is still reached by every web page that its
user has open; this is against those.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Collection
from urllib.parse import SplitResult, unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monai_kdsam.errors import UserError

__all__ = ["Gate", "read_origin"]

logger = logging.getLogger(__name__)


def read_origin(text: str) -> str:
    """An origin as browsers write it: `https://label.example.org`, with a port unless it is the scheme's own.

    Raises:
        ValueError: when it is none.
    """
    parts = _split(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UserError(f"Expected `--allow-origin` of the kind https://label.example.org, got {text!r}.")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # half an IPv6 address, say
        return SplitResult("", "", "", "", "")


class Gate:
    """ASGI middleware that answers in the application's place where a request is not its users'.

    - The `Host` must be an IP address, localhost, this machine's name, or that of an allowed origin: a page whose
      name was pointed at this machine afterwards (DNS rebinding) comes with its own.
    - An `Origin`, which browsers send with all that a page of another origin may change or read, must be the server's
      own or an allowed one.
    - A body is at most `max_upload` bytes.
    - No path leads upwards; `/proxy/dicom` would reach what else the archive's machine serves.

    Pages of other origins can neither embed the server's answers nor show it in a frame.

    Args:
        app: what is behind it.
        origins: allowed beside the server's own, see `read_origin`; a proxy's public address is one.
        max_upload: bytes.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str] = (), max_upload: int = 2**30) -> None:
        self.origins = {read_origin(origin) for origin in origins}
        self.names = {"localhost", socket.gethostname().lower(), *(urlsplit(name).hostname for name in self.origins)}
        self.max_upload = max_upload
        self.app = CORSMiddleware(
            app, allow_origins=sorted(self.origins), allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refuse_place(headers) or self._refuse_content(scope["path"], headers)
        if refusal is not None:
            status, detail = refusal
            logger.warning("Refused %s %s: %s", scope["method"], scope["path"], detail)
            await JSONResponse({"detail": detail}, status_code=status)(scope, receive, send)
            return
        await self.app(scope, self._limited(receive), self._closed(send))

    def _refuse_place(self, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = (_split(f"//{host}").hostname or "").rstrip(".")
        if len(headers.getlist("host")) != 1 or not (_is_address(name) or name in self.names):
            remedy = "Use its IP address, or start it with `--allow-origin` and the address under which it is reached."
            return 421, f"The server is not known as {name[:200]!r}. {remedy}"
        for origin in headers.getlist("origin"):
            if origin.lower() not in self.origins and _split(origin).netloc.lower() != host.lower():
                remedy = "To allow them, start the server with `--allow-origin` and that address."
                return 403, f"Requests of pages of {origin[:200]} are refused. {remedy}"
        return None

    def _refuse_content(self, path: str, headers: Headers) -> tuple[int, str] | None:
        # Twice: who is behind a proxy decodes once more.
        if ".." in unquote(unquote(path)).replace("\\", "/").split("/"):
            return 400, "Expected a path without `..`."
        length = headers.get("content-length", "")
        return (413, self._too_large) if length.isdigit() and int(length) > self.max_upload else None

    @property
    def _too_large(self) -> str:
        return f"Expected at most {self.max_upload >> 20} MiB in a request; `--max-upload` sets the limit."

    def _limited(self, receive: Receive) -> Receive:
        """Count what comes in pieces, whose length nobody told."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_upload:
                raise HTTPException(413, self._too_large)
            return message

        return counted

    def _closed(self, send: Send) -> Send:
        """Tell browsers to show nothing of the server inside other pages."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", " ".join(["frame-ancestors 'self'", *self.origins]))
                headers.setdefault("Cross-Origin-Resource-Policy", "cross-origin" if self.origins else "same-origin")
            await send(message)

        return told


def _is_address(name: str) -> bool:
    """Whether a host is an IP address, which nobody can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
