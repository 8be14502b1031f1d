from __future__ import annotations

import io
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histoseg.errors import OutputError
from histoseg.outputs.report import CohortEntry, read_thumbnail, write_index
from histoseg.outputs.report.cohort import build_index


def make_report(nuclei: int, dice: float | None = None, *, scored: bool = False) -> dict:
    classes = [
        {"name": "background", "pixels": 1000 - nuclei, "area_mm2": (1000 - nuclei) / 1000},
        {"name": "nucleus", "pixels": nuclei, "area_mm2": nuclei / 1000},
    ]
    report = {"model": {"background": "background"}, "classes": classes, "seconds": {"total": 3.0}}
    score = {"classes": [{"name": "background", "dice": 1.0}, {"name": "nucleus", "dice": dice}]}
    return report | ({"score": score} if scored else {})


def read_rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [
        [unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in rows
    ]


def test_each_slide_has_its_area_score_time_or_reason() -> None:
    page = build_index(
        [
            CohortEntry("a", "a", make_report(125, 0.9, scored=True)),
            CohortEntry("b", "b", failure="cannot be read"),
            CohortEntry("c", "c", make_report(0, None, scored=True)),
            CohortEntry("d", "d", make_report(1000)),
        ]
    )
    assert read_rows(page) == [
        ["Slide", "Status", "nucleus, mm²", "nucleus, %", "Dice, nucleus", "Time"],
        ["a", "✓ Done", "0.125", "12.50\u202f%", "0.900", "3.0\u202fs"],
        ["bcannot be read", "\u2715 Failed", *["\u2013"] * 4],
        ["c", "✓ Done", "0", "0\u202f%", "not present", "3.0\u202fs"],
        ["d", "✓ Done", "1.00", "100\u202f%", "\u2013", "3.0\u202fs"],
    ]
    assert page.count("<a ") == 3
    assert "<h1><bdi>4 slides, 1 failed</bdi></h1>" in page
    assert "Research use only" in page


def test_a_note_stands_under_its_slide_and_a_stopped_slide_has_not_failed() -> None:
    entries = [
        CohortEntry("a", "a", make_report(1), note="no tissue <found>"),
        CohortEntry("b", "b", failure="the run was stopped", stopped=True),
        CohortEntry("c", "c", failure="torn"),
    ]
    page = build_index(entries)
    assert [row[:2] for row in read_rows(page)[1:]] == [
        ["ano tissue <found>", "✓ Done"],
        ["bthe run was stopped", "\u2013 Stopped"],
        ["ctorn", "\u2715 Failed"],
    ]
    assert "<h1><bdi>3 slides, 1 failed, 1 stopped</bdi></h1>" in page


def test_a_cohort_without_truth_has_no_dice() -> None:
    assert read_rows(build_index([CohortEntry("a", "a", make_report(1))]))[0][-2:] == ["nucleus, %", "Time"]


def test_a_cohort_of_failures_alone_and_of_nothing_has_a_page() -> None:
    assert read_rows(build_index([CohortEntry("a", "a")])) == [
        ["Slide", "Status", "Time"], ["ano result", "\u2715 Failed", "\u2013"]
    ]  # fmt: skip
    assert "0 slides" in build_index([])


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_a_link_leads_into_the_folder_whatever_its_name_is(name: str) -> None:
    page = build_index([CohortEntry(name, name, make_report(1))])
    (address,) = re.findall(r'href="([^"]*)"', page)
    parts = urlsplit(unescape(address))
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert unquote(parts.path) == f"{name}/report.html"


def test_a_name_that_is_no_text_still_has_its_link(tmp_path: Path) -> None:
    write_index(tmp_path / "index.html", [CohortEntry("a\udcff", "a\udcff", make_report(1))])
    assert 'href="a%FF/report.html"' in (tmp_path / "index.html").read_text("utf-8")


def test_a_thumbnail_is_the_overlay_made_small(tmp_path: Path) -> None:
    overlay = np.zeros((1000, 3000, 3), np.uint8)
    overlay[:, 1500:] = (250, 120, 20)
    Image.fromarray(overlay).save(tmp_path / "overlay.png")
    data = read_thumbnail(tmp_path / "overlay.png")
    assert data is not None
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert picture.shape == (64, 192, 3)
    assert np.abs(picture[32, [48, 144]].astype(int) - [[0, 0, 0], [250, 120, 20]]).max() < 8


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_an_overlay_that_cannot_be_read_has_no_thumbnail(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "overlay.png").write_bytes(content)
    assert read_thumbnail(tmp_path / "overlay.png") is None


def test_a_page_replaces_an_older_one_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    write_index(path, [])
    write_index(path, [CohortEntry("a", "a")])
    assert "1 slide," in path.read_text("utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["index.html"]
    with pytest.raises(OutputError, match=r"index\.html: cannot write the page"):
        write_index(tmp_path / "missing" / "index.html", [])
