# SPDX-License-Identifier: Apache-2.0
"""Whether an address is a DICOMweb server, asked before MONAI Label is started on it."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request

from monai_kdsam.errors import UserError, UserFileError

__all__ = ["check_dicomweb"]


def check_dicomweb(address: str, seconds: float = 10) -> None:
    """Ask an address for one study, as MONAI Label will: with the user and the prefix that its variables name.

    Args:
        address: of the DICOMweb service.
        seconds: how long to wait for an answer.

    Raises:
        OSError: when nothing answers, or not to this user.
        ValueError: when what answers is not DICOMweb.
    """
    url = "/".join(filter(None, [address.rstrip("/"), os.environ.get("MONAI_LABEL_QIDO_PREFIX"), "studies"]))
    headers = {"Accept": "application/dicom+json", **_user()}
    try:
        request = urllib.request.Request(f"{url}?limit=1", headers=headers)
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            status, kind, body = answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        status, kind, body = error.code, error.headers.get_content_type(), b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserFileError(
            f"Expected a DICOMweb server at `--studies`, but {address} does not answer ({reason}). "
            "Is it running, and is the address right?"
        ) from error
    if status in (401, 403):
        raise UserFileError(
            f"{url} answered {status}, not allowed. Set MONAI_LABEL_DICOMWEB_USERNAME and "
            "MONAI_LABEL_DICOMWEB_PASSWORD to a user who may read and store."
        )
    if status != 204 and not _are_datasets(kind, body):
        raise UserError(
            f"Expected a DICOMweb server at `--studies`, but {url} answered {status} with {kind}. "
            "Orthanc's address ends in /dicom-web, and its DICOMweb plugin must be loaded."
        )


def _user() -> dict[str, str]:
    name, password = (os.environ.get(f"MONAI_LABEL_DICOMWEB_{part}") for part in ("USERNAME", "PASSWORD"))
    if not name or not password:
        return {}
    try:
        user = f"{name}:{password}".encode("latin-1")  # as requests, and with it MONAI Label's client, sends it
    except UnicodeEncodeError as error:
        raise UserError(
            "Expected MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD in the letters of Latin-1, "
            "as MONAI Label sends them, got others."
        ) from error
    return {"Authorization": "Basic " + base64.b64encode(user).decode()}


def _are_datasets(kind: str, body: bytes) -> bool:
    """Orthanc's own interface answers the same question too, with a list of names."""
    try:
        found = json.loads(body)
    except ValueError:
        return False
    if not found:
        return found == [] and kind == "application/dicom+json"
    return isinstance(found, list) and all(isinstance(item, dict) for item in found)
