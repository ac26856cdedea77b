# SPDX-License-Identifier: Apache-2.0
"""What a segment is: its name, and its codes in SNOMED CT."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import monai_kdsam
from monai_kdsam.errors import UserError

__all__ = ["SEGMENTS", "Segment", "code_from", "segment_named"]

# Name to CATEGORY/TYPE: keywords of DICOM's context group 7150 and of SNOMED CT in pydicom's dictionaries.
SEGMENTS = {
    "lesion": "MorphologicallyAbnormalStructure/Lesion",
    "nodule": "MorphologicallyAbnormalStructure/Nodule",
    "polyp": "MorphologicallyAbnormalStructure/PolypOfColon",
    "skin lesion": "MorphologicallyAbnormalStructure/SkinLesion",
    "tumor": "MorphologicallyAbnormalStructure/Neoplasm",
    "head": "AnatomicalStructure/Head",
    "hippocampus": "AnatomicalStructure/Hippocampus",
}


@dataclass(frozen=True)
class Segment:
    """A segment of a DICOM segmentation.

    Args:
        label: what a viewer shows, cut after 64 characters.
        category: `pydicom.sr.coding.Code` of its property category.
        kind: and of its property type.
        algorithm: what drew it, cut after 64 characters.
        version: of the algorithm.
        algorithm_type: AUTOMATIC; SEMIAUTOMATIC where a person pointed at it; MANUAL.
    """

    label: str
    category: Any
    kind: Any
    algorithm: str = "KD SAM"
    version: str = monai_kdsam.__version__
    algorithm_type: str = "AUTOMATIC"


def segment_named(text: str) -> Segment:
    """The segment of a name in `SEGMENTS`, or of NAME=CATEGORY/TYPE.

    Raises:
        ValueError: on an unknown name or keyword, naming what is known.

    Example:
        >>> segment_named("polyp").kind.value
        '68496003'
        >>> segment_named("prostate=AnatomicalStructure/Prostate").kind.value
        '41216001'
    """
    from pydicom.sr.codedict import codes

    name, separator, keywords = (part.strip() for part in text.partition("="))
    if not separator and name not in SEGMENTS:
        raise UserError(f"Expected `--segment` among {', '.join(SEGMENTS)}, or NAME=CATEGORY/TYPE, got {text!r}.")
    category, slash, kind = (part.strip() for part in (keywords or SEGMENTS.get(name, "")).partition("/"))
    # 64 characters fit into DICOM's Segment Label.
    if not (name and slash) or len(name) > 64:
        raise UserError(f"Expected `--segment` NAME=CATEGORY/TYPE with a NAME of 1 to 64 characters, got {text!r}.")
    return Segment(name, _code(codes.cid7150, category, "CATEGORY"), _code(codes.SCT, kind, "TYPE"))


def _code(dictionary: Any, keyword: str, part: str) -> Any:
    known = dictionary.dir()
    if keyword not in known:
        near = difflib.get_close_matches(keyword, known, n=3) or (known if part == "CATEGORY" else [])
        hint = f" Near: {', '.join(near)}." if near else ""
        raise UserError(f"Expected a keyword of pydicom's {part} codes in `--segment`, got {keyword!r}.{hint}")
    return getattr(dictionary, keyword)


def code_from(given: Mapping[str, str] | None) -> Any:
    """The `pydicom.sr.coding.Code` of a dictionary as dcmqi writes it; of none, of tissue.

    Raises:
        ValueError: when one of its three parts is missing.

    Example:
        >>> code_from({"CodeValue": "10200004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Liver"}).meaning
        'Liver'
    """
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    if given is None:
        return codes.SCT.Tissue
    try:
        return Code(given["CodeValue"], given["CodingSchemeDesignator"], given["CodeMeaning"])
    except KeyError as error:
        raise UserError(
            f"Expected a code with CodeValue, CodingSchemeDesignator and CodeMeaning, got {given}."
        ) from error
