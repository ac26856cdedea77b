# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from monai_kdsam.deploy.dicom_folder import check_folder

pydicom = pytest.importorskip("pydicom")


def sample(name="MR_small.dcm", **changes):
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def test_files_are_found_by_suffix_or_content_at_any_depth(tmp_path):
    (tmp_path / "deep").mkdir()
    sample().save_as(tmp_path / "deep" / "IM0001")
    sample(ImagePositionPatient=[0, 0, 1]).save_as(tmp_path / "a.dcm")
    (tmp_path / "notes.txt").touch()
    assert [file.name for file in check_folder(tmp_path)] == ["a.dcm", "IM0001"]


def test_other_modalities_are_left_out_and_told(tmp_path, caplog):
    sample().save_as(tmp_path / "mr.dcm")
    sample(Modality="PT").save_as(tmp_path / "pt.dcm")
    assert [file.name for file in check_folder(tmp_path, ["MR", "CT"])] == ["mr.dcm"]
    assert "Series of modality PT are left out" in caplog.text


def test_nothing_but_other_modalities_is_an_error(tmp_path):
    sample(Modality="PT").save_as(tmp_path / "pt.dcm")
    with pytest.raises(ValueError, match=r"Expected series of modality US, CT in .*, got PT. `--modalities`"):
        check_folder(tmp_path, ["US", "CT"])


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "image.png").touch()
    with pytest.raises(ValueError, match="There is no DICOM file in `--input`"):
        check_folder(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="`--input` to be a folder"):
        check_folder(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"not a DICOM file", b"\0" * 128 + b"DICM"])
def test_a_damaged_file_is_named(tmp_path, content):
    sample().save_as(tmp_path / "good.dcm")
    (tmp_path / "bad.dcm").write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot (read|use) .*bad\.dcm"):
        check_folder(tmp_path)


def test_a_data_set_without_a_preamble_is_named(tmp_path):
    for name, k in (("a.dcm", 0), ("IM0001", 1)):
        sample(ImagePositionPatient=[0, 0, k]).save_as(tmp_path / name)
    whole = (tmp_path / "IM0001").read_bytes()
    (tmp_path / "IM0001").write_bytes(whole[132:])
    with pytest.raises(ValueError, match=r"Cannot use .*IM0001: it is a DICOM data set without a preamble"):
        check_folder(tmp_path)


def test_what_is_passed_over_is_counted(tmp_path, caplog):
    sample().save_as(tmp_path / "a.dcm")
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    (tmp_path / "notes.txt").write_text("not looked at")
    assert [file.name for file in check_folder(tmp_path)] == ["a.dcm"]
    assert "no DICOM files: 2, gone.dcm (a dead link), notes.txt." in caplog.text


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:Value.*is longer")
@pytest.mark.parametrize("uid", ["/tmp/outside", "../../outside", "..", "1.2.x", "1..2", "1." * 32 + "12", "1/2"])
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID"])
def test_what_is_no_uid_names_no_file(tmp_path, keyword, uid):
    header = sample()
    header[keyword]._value = uid  # pydicom would not write some of them
    header.save_as(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=rf"Cannot use .*a\.dcm: {keyword} .* is no UID"):
        check_folder(tmp_path)


@pytest.mark.parametrize("noise", [0, 2e-7])
def test_two_slices_of_several_at_one_position_are_named(tmp_path, noise):
    sample(ImagePositionPatient=[0, 0, 5]).save_as(tmp_path / "a.dcm")
    sample(SOPInstanceUID="1.2.3", ImagePositionPatient=[0, 0, 5 + noise]).save_as(tmp_path / "b.dcm")
    assert len(check_folder(tmp_path)) == 2  # both are images of their own
    sample(SOPInstanceUID="1.2.4", ImagePositionPatient=[0, 0, 6]).save_as(tmp_path / "c.dcm")
    with pytest.raises(ValueError, match=r"a\.dcm and b\.dcm are slices of one series at one position"):
        check_folder(tmp_path)


def test_images_of_one_uid_are_told(tmp_path, caplog):
    for name in "ab":
        sample("SC_rgb_rle.dcm").save_as(tmp_path / f"{name}.dcm")
    assert len(check_folder(tmp_path)) == 2
    assert "a.dcm, b.dcm have the same SOP Instance UID" in caplog.text


def test_a_deflated_file_is_not_inflated_beyond_the_limit(tmp_path, monkeypatch):
    dataset = sample()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm")
    assert len(check_folder(tmp_path)) == 1
    monkeypatch.setenv("KDSAM_MAX_PIXELS", "1000")
    with pytest.raises(ValueError, match=r"a\.dcm claims .* KDSAM_MAX_PIXELS"):
        check_folder(tmp_path)
