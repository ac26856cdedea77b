# SPDX-License-Identifier: Apache-2.0
"""What stands before the annotation server: it lets in no page of another origin, no foreign name, and no flood.

No password is asked for here. A server that listens on this machine alone is still reached by every web page that its
user has open; this is against those.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import math
import socket
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monai_kdsam.errors import UserError
from monai_kdsam.files import is_unicode

__all__ = ["Gate", "asked_by", "check_params", "read_origin", "read_params"]

logger = logging.getLogger(__name__)
# What MONAI Label looks up by them, or makes a name of.
NAMES = ("model", "strategy", "method", "label_tag")
DEPTH = 20  # of lists in lists; a code of a segment in `label_info` is 6 deep


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


_client: ContextVar[str] = ContextVar("client", default="")


def asked_by() -> str:
    """Whose request is being answered, so far as it tells: address and credentials, as a checksum; empty for nobody."""
    return _client.get() and hashlib.sha256(_client.get().encode()).hexdigest()


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
        _client.set(f"{(scope.get('client') or ('',))[0]} {headers.get('authorization', '')}")
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


def read_params(text: str, name: str = "params") -> dict[str, Any]:
    """The JSON object of a form.

    Raises:
        UserError: when it is none, or holds what `check_params` refuses.
    """
    try:
        params = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"Expected `{name}` to be JSON, got something else: {str(error)[:200]}.") from error
    if not isinstance(params, dict):
        raise UserError(f"Expected `{name}` to be a JSON object, got JSON of another kind.")
    check_params(params)
    return params


def check_params(params: Mapping[str, Any]) -> None:
    """Refuse what JSON can hold and nothing here can take; much of it would be stored, and never be read again.

    Raises:
        UserError: naming the key, when a number is not finite, text is no Unicode, lists are nested without end, or a
            name is none.
    """
    for key, value in params.items():
        if key in NAMES and not isinstance(value, (str, type(None))):
            raise UserError(f"Expected `{key}` to be text, got {str(value)[:100]}.")
        for part in _parts([key, value], DEPTH):
            if part is None:
                raise UserError(f"Expected less than {DEPTH} lists in one another in `{key[:100]}`.")
            if isinstance(part, (int, float)) and not _is_finite(part):
                raise UserError(f"Expected finite numbers in `{key[:100]}`, got {str(part)[:20]}.")
            if isinstance(part, str) and not is_unicode(part):
                raise UserError(f"Expected Unicode in `{key.encode(errors='replace').decode()[:100]}`.")


def _parts(value: Any, depth: int) -> Iterator[str | int | float | None]:
    """The numbers and texts in a value of JSON; None where it is too deep."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if not isinstance(value, (list, tuple)):
        yield value if isinstance(value, (str, int, float)) else 0
    elif not depth:
        yield None
    else:
        for part in value:
            yield from _parts(part, depth - 1)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond them
        return False
