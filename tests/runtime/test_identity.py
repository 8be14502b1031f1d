"""Which files a slide is, and that a change of any of them makes another run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from histoseg.dicomseries import find_siblings
from histoseg.identity import identify_run
from histoseg.options import RunOptions


def identify(path: Path, open_model) -> dict:
    found = identify_run(path, open_model("conv"), RunOptions())
    assert found is not None
    return found["slide"]


@pytest.mark.parametrize(
    ("name", "beside"), [("a.mrxs", "a/Data0001.dat"), ("a.vms", "a_1.jpg"), ("a.tif", "a.tif")]
)
def test_a_change_of_any_file_of_a_slide_is_seen(open_model, tmp_path: Path, name: str, beside: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_text("[Virtual Microscope Specimen]\nImageFile=a_1.jpg\nMapFile=absent.jpg\n")
    if beside != name:
        (tmp_path / beside).write_text("pixels")
    before = identify(tmp_path / name, open_model)
    assert identify(tmp_path / name, open_model) == before
    os.utime(tmp_path / beside, (1, 1))
    assert identify(tmp_path / name, open_model) != before


def test_a_folder_of_the_slides_name_is_no_part_of_a_tiff(open_model, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("pixels")
    before = identify(tmp_path / "a.tif", open_model)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "labels.tif").write_text("ours")
    assert identify(tmp_path / "a.tif", open_model) == before


def test_the_other_files_of_a_dicom_series_count(open_model, shared_data: Path, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("1.dcm", "2.dcm", "3.dcm"))
    for path in (first, second):
        path.write_bytes((shared_data / "slides" / "sm_image.dcm").read_bytes())
    other.write_bytes((shared_data / "slides" / "camelyon-jpeg.dcm").read_bytes())
    assert find_siblings(first) == [first, second]
    before = identify(first, open_model)
    os.utime(other, (1, 1))
    assert identify(first, open_model) == before
    os.utime(second, (1, 1))
    assert identify(first, open_model) != before


def test_what_is_no_file_cannot_be_known_again(open_model, tmp_path: Path) -> None:
    assert identify_run(tmp_path / "absent.svs", open_model("conv"), RunOptions()) is None
