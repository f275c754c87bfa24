"""The page in a real browser: every control changes what it should, and nothing goes wrong in the console."""

import pytest

from mri.scan import Geometry
from report.index import write_index
from tests import browser
from tests.reports import finished_scan, write

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    geometry = Geometry(voxel_mm=(2.0, 1.5, 8.0), frame_time_ms=40.0)
    return write(tmp_path_factory.mktemp("report") / "report.html", geometry=geometry)


@pytest.fixture
def opened(page, report):
    """The report, paused at the first frame."""
    page.errors.clear()
    page.requests.clear()
    page.open(report)
    page.wait_for("document.body.dataset.ready === 'yes'")
    page.evaluate("document.getElementById('play').textContent === 'Pause' && document.getElementById('play').click()")
    set_control(page, "frame", 1)
    yield page
    assert not page.errors
    assert all(url.startswith(("file:", "data:")) for url in page.requests)


def pixels(page, selector):
    """The pixels of a canvas."""
    return page.evaluate(
        f"(canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.join())"
        f"(document.querySelector({selector!r}))"
    )


def set_control(page, name, value):
    page.evaluate(
        f"(control => {{ control.value = {value!r}; control.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
        f"(document.getElementById({name!r}))"
    )


def focus(page, selector):
    page.evaluate(f"document.querySelector({selector!r}).focus()")


def text(page, name):
    return page.evaluate(f"document.getElementById({name!r}).textContent")


IMAGE, PROFILE, STAGE = "#panel-gldm .stage canvas", "#panel-gldm .profile canvas", "#panel-gldm .stage"
WIPE = "#wipe-canvas"


def test_it_plays_and_pauses(opened):
    first = pixels(opened, IMAGE)
    opened.evaluate("document.getElementById('play').click()")
    opened.wait_for("Number(document.getElementById('frame').value) > 1")
    opened.evaluate("document.getElementById('play').click()")
    assert pixels(opened, IMAGE) != first and text(opened, "play") == "Play"
    frame = text(opened, "frame-value")
    opened.evaluate("new Promise(done => setTimeout(done, 300))")
    assert text(opened, "frame-value") == frame


def test_the_frame_slider_and_the_time(opened):
    first = pixels(opened, IMAGE)
    set_control(opened, "frame", 4)
    assert pixels(opened, IMAGE) != first and text(opened, "frame-value") == "4 of 4, 120 ms"
    set_control(opened, "frame", 1)
    assert pixels(opened, IMAGE) == first


def test_the_window_works_on_values(opened):
    before, wiped, profile = (pixels(opened, one) for one in (IMAGE, WIPE, PROFILE))
    set_control(opened, "window", 40)
    assert pixels(opened, IMAGE) != before and pixels(opened, WIPE) != wiped and pixels(opened, PROFILE) != profile
    set_control(opened, "level", 200)
    values = {int(value) for value in pixels(opened, IMAGE).split(",")}
    assert 0 in values and 255 in values
    opened.evaluate("document.getElementById('reset').click()")
    assert pixels(opened, IMAGE) == before


def test_the_line_moves_by_mouse(opened):
    before = pixels(opened, PROFILE)
    opened.drag(STAGE, (0.5, 0.5), (0.4, 0.3), (0.4, 0.2))
    assert pixels(opened, PROFILE) != before
    offset = float(opened.evaluate("document.getElementById('offset').value"))
    assert offset == pytest.approx((0.2 - 0.5) * 48 * 2.0, abs=2)  # mm
    assert "row 9, column 12" in text(opened, "readout") and "GLDM" in text(opened, "readout")


def test_the_line_moves_by_touch(page, report):
    page.errors.clear()
    page.open(report, 375, 800, touch=True)
    page.wait_for("document.body.dataset.ready === 'yes'")
    before = pixels(page, PROFILE)
    page.touch(STAGE, (0.5, 0.85))  # a tap
    page.wait_for("Math.abs(document.getElementById('offset').value - 0.35 * 96) < 2")
    assert pixels(page, PROFILE) != before
    page.touch(STAGE, (0.5, 0.85), (0.5, 0.7), (0.5, 0.3), (0.5, 0.2))  # the line is dragged
    page.wait_for("Math.abs(0.3 * 96 - -document.getElementById('offset').value) < 2")
    scrolled = page.evaluate("scrollY")
    page.touch(STAGE, (0.5, 0.8), (0.5, 0.6), (0.5, 0.4), (0.5, 0.1))  # elsewhere the page scrolls
    page.wait_for(f"scrollY > {scrolled}")
    assert abs(float(page.evaluate("document.getElementById('offset').value")) + 0.3 * 96) < 2 and not page.errors


def test_the_line_turns(opened):
    before = pixels(opened, PROFILE)
    set_control(opened, "angle", 90)
    width = opened.evaluate(f"document.querySelector({PROFILE!r}).width")
    assert width == round(48 * 2.0 / 1.5) and pixels(opened, PROFILE) != before
    for angle in range(0, 176, 35):
        set_control(opened, "angle", angle)
        for end in ("min", "max"):
            set_control(opened, "offset", float(opened.evaluate(f"document.getElementById('offset').{end}")))


def test_the_profile_is_the_row_over_time(opened):
    opened.drag(STAGE, (0.5, (10 + 0.5) / 48))
    row = opened.evaluate(
        f"[...document.querySelector({IMAGE!r}).getContext('2d').getImageData(0, 10, 32, 1).data].join()"
    )
    profile = opened.evaluate(
        f"[...document.querySelector({PROFILE!r}).getContext('2d').getImageData(0, 0, 32, 1).data].join()"
    )
    difference = [abs(int(a) - int(b)) for a, b in zip(row.split(","), profile.split(","), strict=True)]
    assert max(difference) <= 30 and sum(difference) / len(difference) < 6  # the pointer is within half a pixel


def test_the_wipe(opened):
    set_control(opened, "wipe", 0)
    assert pixels(opened, WIPE) == pixels(opened, IMAGE)
    set_control(opened, "wipe", 100)
    assert pixels(opened, WIPE) == pixels(opened, "#panel-nearest_merge .stage canvas")
    set_control(opened, "left", "reference")
    assert pixels(opened, WIPE) == pixels(opened, "#panel-reference .stage canvas")
    before = pixels(opened, WIPE)
    opened.drag("#wipe-stage", (0.9, 0.5), (0.3, 0.5))
    assert pixels(opened, WIPE) != before
    assert float(opened.evaluate("document.getElementById('wipe').value")) == pytest.approx(30, abs=1)


def test_error_maps(opened):
    before, reference = pixels(opened, IMAGE), pixels(opened, "#panel-reference .stage canvas")
    set_control(opened, "view", "error")
    error = pixels(opened, IMAGE)
    assert error != before and pixels(opened, "#panel-reference .stage canvas") == reference
    assert not opened.evaluate("document.getElementById('scale-bar').hidden")
    set_control(opened, "gain", 20)
    assert pixels(opened, IMAGE) != error
    others = pixels(opened, "#panel-zero_filled .stage canvas")
    set_control(opened, "view", "likely")
    assert pixels(opened, IMAGE) not in (before, error)
    assert pixels(opened, "#panel-zero_filled .stage canvas") != others


def test_the_keyboard(opened):
    focus(opened, "#panels")
    opened.press("ArrowRight")
    assert text(opened, "frame-value").startswith("2 of 4")
    opened.press("ArrowLeft")
    opened.press("ArrowLeft")
    assert text(opened, "frame-value").startswith("4 of 4")
    offset = "document.getElementById('offset').value"
    before, profile = opened.evaluate(offset), pixels(opened, PROFILE)
    for _ in range(6):
        opened.press("ArrowDown")
    assert float(opened.evaluate(offset)) == pytest.approx(float(before) + 9, abs=0.8)
    assert pixels(opened, PROFILE) != profile
    opened.press(" ")
    assert text(opened, "play") == "Pause"
    opened.press(" ")
    assert text(opened, "play") == "Play"
    focus(opened, "#wipe")
    wiped = pixels(opened, WIPE)
    for _ in range(8):
        opened.press("ArrowRight")
    assert pixels(opened, WIPE) != wiped and text(opened, "frame-value").startswith("4 of 4")


def test_every_control_is_reached_by_tab_and_the_focus_shows(opened):
    focus(opened, "#play")
    seen = ["play"]
    for _ in range(40):
        opened.press("Tab")
        seen.append(opened.evaluate("document.activeElement.id || document.activeElement.tagName"))
    order = ["play", "frame", "speed", "view", "gain", "panels", "window", "level", "reset", "offset", "angle", "left",
             "right", "wipe", "copy", "SUMMARY"]  # fmt: skip
    assert [name for name in seen if name in order][: len(order)] == order
    focus(opened, "#frame")
    opened.press("Tab")
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_methods_can_be_hidden_and_shown(opened):
    assert opened.evaluate("document.getElementById('panel-ou_only').hidden")
    opened.evaluate("document.querySelector('.method[value=ou_only]').click()")
    assert not opened.evaluate("document.getElementById('panel-ou_only').hidden")
    assert len(set(pixels(opened, "#panel-ou_only .stage canvas").split(","))) > 10


def test_the_command_is_copied_or_selected(opened):
    opened.evaluate("document.getElementById('copy').click()")
    opened.wait_for("document.getElementById('copied').textContent !== ''")


@pytest.mark.parametrize("width", [320, 375, 900, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window(page, report, width, dark):
    page.open(report, width, 800, dark=dark, touch=width < 400)
    page.wait_for("document.body.dataset.ready === 'yes'")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128")
    assert light is not dark


def test_images_have_the_shape_of_the_object(opened):
    box = opened.evaluate(f"(b => [b.width, b.height])(document.querySelector({IMAGE!r}).getBoundingClientRect())")
    assert box[1] / box[0] == pytest.approx(48 * 2.0 / (32 * 1.5), rel=0.01)


@pytest.mark.parametrize("more", [{"reference": False}, {"deviation": False}, {"reference": False, "deviation": False}])
def test_without_reference_or_likely_error(page, tmp_path, more):
    page.errors.clear()
    page.open(write(tmp_path / "report.html", coils=1, **more))
    page.wait_for("document.body.dataset.ready === 'yes'")
    assert len(set(pixels(page, IMAGE).split(","))) > 10 and not page.errors


def test_the_index(page, tmp_path):
    page.errors.clear()
    finished_scan(tmp_path, "heart 1#", scored=True)
    write_index(tmp_path, ["heart 1#", "broken"], {"broken": "it is empty"})
    for width in (375, 900):
        page.open(tmp_path / "index.html", width, 800)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.evaluate("(b => [b.width, b.height])(document.querySelector('img').getBoundingClientRect())")
    assert box[1] / box[0] == pytest.approx(48 * 2 / 32, rel=0.03)
    page.evaluate("document.querySelector('a').click()")
    page.wait_for("location.pathname.endsWith('heart%201%23/report.html')")
    assert not page.errors
