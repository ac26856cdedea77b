# SPDX-License-Identifier: Apache-2.0
"""Bundles on a hub, Hugging Face's or the one that HF_ENDPOINT names: fetched from it, and pushed to it."""

from __future__ import annotations

import contextlib
import json
import logging
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import validate_repo_id
from monai.bundle import ConfigExpression

import monai_kdsam
from monai_kdsam.bundles import BUNDLES, bundle_path
from monai_kdsam.errors import DISK_ERRORS, ExistingFileError, MissingFileError, UserError
from monai_kdsam.weights.sidecar import read_sidecar

__all__ = ["check_name", "copy_fetched", "fetch_bundle", "push_folder"]

logger = logging.getLogger(__name__)
# What a bundle needs to run; exports and weights in other formats stay on the hub.
FETCHED = ["configs/*", "docs/*", "models/model.pt", "models/model.json", "*.py", "LICENSE", "README.md"]
LOG_IN = "log in (`hf auth login`, or HF_TOKEN)"


def fetch_bundle(repo: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Fetch a bundle into huggingface_hub's own cache, or find it there; without a connection what was fetched before.

    Args:
        repo: ORG/NAME.
        revision: branch, tag or commit; None is the newest commit.
        trust_remote_code: take a bundle whose configuration or modules are not this package's own. They are code.

    Returns:
        Its folder, named for its commit.

    Raises:
        UserError: when the hub, the repository or the revision cannot be had, the weights are not those of their
            sidecar, or the bundle has code of its own and is not trusted.
        FileNotFoundError: when the repository holds no bundle.
    """
    check_name(repo, "bundle", "a folder, or ORG/NAME on a hub")
    with _told(repo, revision, "Connect, or name the folder of a bundle that was fetched elsewhere."):
        folder = Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=FETCHED, library_name="monai_kdsam"
            )
        )
    logger.info("%s is at commit %s, in %s.", repo, folder.name, folder)
    weights = folder / "models" / "model.pt"
    for file in (folder / "configs" / "inference.json", weights):
        if not file.is_file():
            raise MissingFileError(f"Expected {repo} to hold a bundle, but it has no {file.relative_to(folder)}.")
    try:
        read_sidecar(weights)
    except UserError as error:
        raise UserError(
            f"The models/model.pt of {repo} at {folder.name} is not the file that its model.json describes. Delete "
            f"{folder.parents[1]} to fetch both anew, or take another `revision`; if that does not help, tell who "
            "published it."
        ) from error
    if not trust_remote_code:
        _check_code(folder, repo)
    return folder


def copy_fetched(repo: str, folder: str | Path = ".", revision: str | None = None) -> Path:
    """Fetch a bundle as `fetch_bundle` does, and copy it into a new folder named for it, which every command takes.

    Raises:
        FileExistsError: when there is such a folder already.
    """
    target = Path(folder) / repo.rpartition("/")[2]
    if target.exists():
        raise ExistingFileError(f"{target} exists already: remove it, or name another folder with --dir.")
    shutil.copytree(fetch_bundle(repo, revision), target)
    return target


def push_folder(folder: Path, repo: str) -> str:
    """Push a folder to a repository, which is made, for nobody else to see, if there is none. Returns the commit."""
    check_name(repo, "--push", "ORG/NAME on a hub")
    api = huggingface_hub.HfApi(library_name="monai_kdsam")
    with _told(repo, None, f"What was to be pushed is in {folder}."):
        api.create_repo(repo, private=True, exist_ok=True)
        message = f"Published by monai_kdsam {monai_kdsam.__version__}"
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).oid)


def check_name(repo: str, argument: str, expected: str) -> None:
    """Raise a `UserError` where something is no name of a repository."""
    try:
        validate_repo_id(repo)
    except ValueError:
        known = False
    else:
        known = "/" in repo
    if not known:
        raise UserError(f"Expected `{argument}` to be {expected}, got {repo!r}.")


def _check_code(folder: Path, repo: str) -> None:
    """Raise where a bundle has modules, or a configuration that differs in more than values from each of ours."""
    file = folder / "configs" / "inference.json"
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"The configs/inference.json of {repo} is damaged: {error}. Tell who published it.") from error
    own = [json.loads((bundle_path(name) / "configs" / "inference.json").read_text("utf-8")) for name in BUNDLES]
    others = min(([key for key in content if not _is_known(key, content, ours)] for ours in own), key=len)
    code = [*others, *(f"the module {module.name}" for module in pkgutil.iter_modules([str(folder)]))]
    if code:
        raise UserError(
            f"{repo} brings code of its own ({', '.join(code[:5])}{', ...' if len(code) > 5 else ''}), or was made by "
            f"another monai_kdsam than this, {monai_kdsam.__version__}. Read it in {folder}, then allow it with "
            "`trust_remote_code=True`, or name that folder."
        )


def _is_known(key: str, content: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether an entry of a configuration is as ours, or another value and nothing that is evaluated."""
    value = content[key]
    return (key in ours and ours[key] == value) or (key.isidentifier() and _is_plain(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(entry) for entry in value)
    if isinstance(value, str):
        return not ConfigExpression.is_expression(value) and not value.startswith(("@", "%"))
    return value is None or isinstance(value, (bool, int, float))


@contextlib.contextmanager
def _told(repo: str, revision: str | None, remedy: str) -> Iterator[None]:
    """Raise what goes wrong on the way to the hub as a `UserError` that says what to do."""
    try:
        yield
    except (errors.HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise UserError(_reason(error, repo, revision, remedy)) from error


def _reason(error: Exception, repo: str, revision: str | None, remedy: str) -> str:
    hub = constants.ENDPOINT
    if isinstance(error, errors.RevisionNotFoundError):
        return f"Expected `revision` to be a branch, tag or commit of {hub}/{repo}, got {revision!r}, which is none."
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: ask for it at {hub}/{repo}, and {LOG_IN}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no {repo} on {hub}, or it is private: correct the name, or {LOG_IN}."
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{hub} refuses {repo} to you ({status}): {LOG_IN} as who may."
    if status:
        return f"{hub} answered {status} for {repo}. Try again later. {remedy}"
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return f"{repo} was not fetched before, and HF_HUB_OFFLINE forbids to fetch it. {remedy}"
    told = str(cause).partition("\n")[0].rstrip(".")
    return f"Cannot get through to {hub}, which HF_ENDPOINT chooses: {told}. {remedy}"
