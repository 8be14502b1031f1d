"""The pages in a real Chromium: what a person sees, does with keys and mouse, hears, and prints."""

from __future__ import annotations

import base64
import copy
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cv2
import numpy as np
import pytest

from histoseg.job import segment_slide
from histoseg.outputs.report import CohortEntry, Glance, write_index, write_report

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

EVIL = "<script>window.hacked = 1</script>"
COLORS = ("#ffffff", "#0000ff", "#ff0000")
GRAY, BLUE, RED = (200, 200, 200), (0, 0, 255), (255, 0, 0)
WIDTHS = (390, 1024, 1600)
# Contrast of text against what is behind it, WCAG 2.2, success criterion 1.4.3.
LEAST_CONTRAST = 4.5
CONTRASTS = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (rgb) => {
  const line = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = rgb.map((v) => line(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color.length === 3 || color[3] > 0.8) return color.slice(0, 3);
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility() && !e.closest("svg"))
  .filter((e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
  .map((e) => {
    const pair = [parse(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light);
    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), e.outerHTML.slice(0, 80)];
  });
"""


def give_up(reason: str) -> NoReturn:
    """Skip where a person works, and fail where nobody would notice."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, but CI=true demands it")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    try:
        from selenium import webdriver
    except ImportError:
        give_up("selenium is not installed (pip install selenium)")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        give_up("Chromium or its driver is not installed (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--force-prefers-reduced-motion"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def found(open_model, small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of three classes reports, under names that nobody should trust."""
    report = segment_slide(small_slide, open_model("constant"), tmp_path_factory.mktemp("run"))
    report["slide"]["path"] = f"/slides/{EVIL}.svs".replace("</", "<\\")
    report["classes"][2]["name"] = report["model"]["name"] = EVIL
    report["options"]["mpp"] = 0.25
    return report


@pytest.fixture(scope="module")
def page(found: dict[str, Any], open_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey slide with a blue square on its left and a red one on its right; its upper half is tissue."""
    card = open_model("constant").card
    card = dataclasses.replace(
        card, class_names=(*card.class_names[:2], EVIL), class_colors=COLORS, intended_use=f"Research {EVIL}"
    )
    labels = np.zeros((300, 400), np.uint8)
    labels[100:200, 50:150], labels[100:200, 250:350] = 1, 2
    glance = Glance(np.full((300, 400, 3), 200, np.uint8), labels, np.where(labels, np.uint8(255), 0))
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, found, card, glance, np.arange(30)[:, None] < np.full((1, 40), 15))
    return path


def set_view(browser: Chrome, width: int = 1024, scheme: str = "light", media: str = "") -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


@pytest.fixture
def visit(browser: Chrome, page: Path) -> Callable[..., Chrome]:
    """`visit(path=page, **view)` opens a page afresh."""

    def go(path: Path = page, **view: Any) -> Chrome:
        set_view(browser, **view)
        browser.get(path.as_uri())
        return browser

    return go


def find(browser: Chrome, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def see(browser: Chrome) -> dict[str, tuple[int, ...]]:
    """Return the colours in the middle of both squares, and above and below them."""
    png = np.frombuffer(find(browser, "#view").screenshot_as_png, np.uint8)
    picture = cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1]
    height, width = picture.shape[:2]
    at = {"left": (0.5, 0.25), "right": (0.5, 0.75), "above": (0.1, 0.5), "below": (0.9, 0.5)}
    return {
        key: tuple(map(int, picture[round(y * height), round(x * width)].astype(int)))
        for key, (y, x) in at.items()
    }


def near(color: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(color, expected, strict=True)) <= 3


def press(element: Any, *keys: str) -> None:
    for key in keys:
        element.send_keys(key)


@pytest.fixture
def keys() -> Any:
    from selenium.webdriver.common.keys import Keys

    return Keys


def test_the_slider_changes_pixels_by_keyboard(visit: Callable[..., Chrome], keys: Any) -> None:
    browser = visit()
    slider = find(browser, "#opacity")
    press(slider, keys.END)
    assert near(see(browser)["left"], BLUE)
    press(slider, keys.HOME)
    assert near(see(browser)["left"], GRAY)
    press(slider, *[keys.ARROW_RIGHT] * 25)
    mixed = tuple(round(0.75 * g + 0.25 * b) for g, b in zip(GRAY, BLUE, strict=True))
    assert near(see(browser)["left"], mixed)
    assert slider.get_attribute("aria-valuetext") == "25 percent"


def test_a_switch_hides_its_class_and_no_other(visit: Callable[..., Chrome], keys: Any) -> None:
    browser = visit()
    press(find(browser, "#opacity"), keys.END)
    for index, side, other in ((1, "left", "right"), (2, "right", "left")):
        box = find(browser, f"[data-layer=class-{index}]")
        before = see(browser)
        press(box, keys.SPACE)
        hidden = see(browser)
        assert near(hidden[side], GRAY)
        assert hidden[other] == before[other]
        press(box, keys.SPACE)
        assert see(browser) == before


def test_the_tissue_mask_dims_what_lies_outside_alone(visit: Callable[..., Chrome], keys: Any) -> None:
    browser = visit()
    before = see(browser)
    press(find(browser, "[data-layer=outside]"), keys.SPACE)
    after = see(browser)
    assert after["above"] == before["above"]
    assert max(after["below"]) < min(before["below"]) - 50


def test_zoom_and_pan_by_keyboard_and_back(visit: Callable[..., Chrome], keys: Any) -> None:
    browser = visit()
    press(find(browser, "#opacity"), keys.END)
    view, whole = find(browser, "#view"), see(browser)
    press(view, "+", "+", "+")
    assert find(browser, "#zoom-words").text.startswith("338")
    assert near(see(browser)["left"], GRAY)  # the middle of the picture is between both squares
    press(view, *[keys.ARROW_LEFT] * 8)
    assert near(see(browser)["right"], BLUE)
    press(view, *[keys.ARROW_RIGHT] * 40)
    assert near(see(browser)["left"], RED)
    press(view, "0")
    assert see(browser) == whole
    for _ in range(2):
        find(browser, "#zoom-in").click()
    assert near(see(browser)["left"], GRAY)
    find(browser, "#zoom-fit").click()
    assert see(browser) == whole


def test_the_picture_follows_the_mouse(visit: Callable[..., Chrome], keys: Any) -> None:
    from selenium.webdriver import ActionChains

    browser = visit()
    press(find(browser, "#opacity"), keys.END)
    view = find(browser, "#view")
    press(view, "+", "+", "+")
    ActionChains(browser).drag_and_drop_by_offset(view, 250, 0).perform()
    assert near(see(browser)["right"], GRAY)
    ActionChains(browser).drag_and_drop_by_offset(view, 200, 0).perform()
    assert near(see(browser)["right"], BLUE)


def test_the_scale_bar_is_true_at_any_zoom(visit: Callable[..., Chrome]) -> None:
    browser = visit()
    um_per_image_px = 700 * 0.25 / 400
    for zoom in (1.0, 1.5, 2.25):
        bar = find(browser, "#scale-bar").size["width"]
        shown = float(find(browser, "#scale-words").text.removesuffix(" µm"))
        screen_per_image_px = find(browser, "#view").size["width"] / 400 * zoom
        assert bar / screen_per_image_px * um_per_image_px == pytest.approx(shown, rel=0.03)
        press(find(browser, "#view"), "+")


def test_names_stay_text_and_nothing_is_loaded_or_logged(visit: Callable[..., Chrome]) -> None:
    browser = visit()
    assert find(browser, "h1").text == EVIL.replace("</", "<\\") + ".svs"
    assert EVIL in find(browser, ".classes").text
    assert browser.execute_script("return [window.hacked, document.scripts.length]") == [None, 1]
    names = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith("data:") for name in names)
    assert browser.get_log("browser") == []
    assert "Research use only" in find(browser, "header").text
    assert "--mpp" in find(browser, ".notes").text


def test_a_script_that_slipped_in_would_not_run(visit: Callable[..., Chrome], page: Path) -> None:
    """Should escaping ever fail, the policy holds: no script, no handler, no picture from elsewhere."""
    smuggled = page.with_name("smuggled.html")
    evil = f'{EVIL}<img src="http://127.0.0.1:9/x.png" onerror="window.hacked = 2">'
    smuggled.write_text(page.read_text("utf-8").replace("<main>", f"<main>{evil}"), "utf-8")
    browser = visit(smuggled)
    assert browser.execute_script("return window.hacked") is None
    messages = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert messages.count("Content Security Policy") >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_readable_at_every_size_and_in_both_schemes(
    visit: Callable[..., Chrome], width: int, scheme: str
) -> None:
    browser = visit(width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    find(browser, "#view").send_keys("+")
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 40
    assert [entry for entry in contrasts if entry[0] < LEAST_CONTRAST] == []
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(ground.removeprefix("rgb(").split(",")[0]) > 127) == (scheme == "light")


def test_a_screen_reader_hears_a_name_for_whatever_can_be_used(visit: Callable[..., Chrome]) -> None:
    browser = visit()
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    heard = [
        (node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]
    ]
    used = [entry for entry in heard if entry[0] in ("slider", "checkbox", "button", "table", "image")]
    assert {role for role, _ in used} == {"slider", "checkbox", "button", "table", "image"}
    assert [role for role, name in used if not name] == []
    assert ("slider", "Opacity of the segmentation") in used
    assert ("checkbox", EVIL) in used


def test_every_control_can_be_reached_and_is_seen_to_be(visit: Callable[..., Chrome], keys: Any) -> None:
    browser, reached = visit(), []
    for _ in range(12):
        press(browser.switch_to.active_element, keys.TAB)
        focus = browser.switch_to.active_element
        outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineWidth", focus)
        reached.append(
            (focus.get_attribute("id") or focus.get_attribute("data-layer") or focus.tag_name, outline)
        )
        if focus.tag_name == "summary":
            break
    assert [key for key, _ in reached] == [
        "view", "zoom-in", "zoom-out", "zoom-fit", "opacity", "outside", "class-1", "class-2", "summary"
    ]  # fmt: skip
    assert {outline for _, outline in reached} == {"3px"}


def test_without_scripts_the_segmentation_shows_and_no_dead_control_does(
    visit: Callable[..., Chrome],
) -> None:
    browser = visit()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        seen = see(browser)
        dead = [e for e in browser.find_elements("css selector", "input, button") if e.is_displayed()]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert seen["left"][2] > seen["left"][0] + 100
    assert seen["right"][0] > seen["right"][1] + 100
    assert dead == []


def test_on_paper_are_the_whole_picture_and_all_tables_without_controls(
    visit: Callable[..., Chrome],
) -> None:
    browser = visit()
    whole = see(browser)
    press(find(browser, "#view"), "+", "+", "+")
    set_view(browser, media="print")
    seen = see(browser)
    assert [near(seen[key], whole[key]) for key in ("left", "right")] == [True, True]
    assert all(table.is_displayed() for table in browser.find_elements("css selector", "table"))
    controls = browser.find_elements("css selector", "input, button, output, summary")
    assert [element.tag_name for element in controls if element.is_displayed()] == []
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")


@pytest.fixture
def index(found: dict[str, Any], tmp_path: Path) -> Path:
    """Four slides, of which one failed."""
    entries = []
    for name, area, seconds in (("slide 10", 0.5, 3.0), ("slide 9", 40.0, 20.0), (EVIL, 6.0, 100.0)):
        report = copy.deepcopy(found)
        report["classes"][1]["area_mm2"], report["seconds"]["total"] = area, seconds
        entries.append(CohortEntry(name, name.replace("/", ""), report))
    entries.insert(1, CohortEntry("broken", "broken", failure=f"cannot be read {EVIL}"))
    write_index(tmp_path / "index.html", entries)
    return tmp_path / "index.html"


def test_a_cohort_sorts_by_keyboard_and_says_how(
    visit: Callable[..., Chrome], index: Path, keys: Any
) -> None:
    browser = visit(index)

    def names() -> list[str]:
        return [bdi.text for bdi in browser.find_elements("css selector", "tbody bdi")]

    assert names() == ["slide 10", "broken", "slide 9", EVIL]
    slide, _, area, *_, seconds = browser.find_elements("css selector", "thead button")
    press(area, keys.ENTER)
    assert names() == ["slide 10", EVIL, "slide 9", "broken"]
    press(area, keys.SPACE)
    assert names() == ["slide 9", EVIL, "slide 10", "broken"]
    seconds.click()
    assert names() == ["slide 10", "slide 9", EVIL, "broken"]
    sorted_by = browser.find_elements("css selector", "[aria-sort]")
    assert [(th.text.split()[0], th.get_attribute("aria-sort")) for th in sorted_by] == [
        ("Time", "ascending")
    ]
    slide.click()
    assert names() == [EVIL, "broken", "slide 9", "slide 10"]
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_cohort_is_readable_at_every_size(
    visit: Callable[..., Chrome], index: Path, width: int, scheme: str
) -> None:
    browser = visit(index, width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 20
    assert [entry for entry in contrasts if entry[0] < LEAST_CONTRAST] == []


def test_a_cohort_leads_to_the_pages_of_its_slides(
    visit: Callable[..., Chrome], page: Path, found: dict[str, Any]
) -> None:
    folder = page.parent / "a #1?&<b>% slide"
    folder.mkdir()
    shutil.copy(page, folder / "report.html")
    write_index(page.with_name("index.html"), [CohortEntry("one", folder.name, found)])
    browser = visit(page.with_name("index.html"))
    find(browser, "tbody a").click()
    assert find(browser, "h1").text.endswith(".svs")
