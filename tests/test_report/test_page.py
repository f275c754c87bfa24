"""`report.html` and `index.html`: what they hold, and that they need nothing else."""

import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
import torch

from mri.scan import Geometry, Scan
from report.index import write_index
from report.page import TEMPLATES, write_report
from tests.commands import ROOT
from tests.reports import EVIL, NOTES, finished_scan, record, write


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


def assert_self_contained(text):
    for tag, attributes in Elements(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "srcset", "href", "action", "data"):
            value = attributes.get(name) or ""
            assert not re.match(r"\s*(\w+:|//)", value) or value.startswith("data:image/png;base64,"), value
        assert not [name for name in attributes if name.startswith("on")]
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text


def test_a_report_is_one_file_with_all_that_was_said(tmp_path):
    text = write(tmp_path / "report.html").read_text()
    assert_self_contained(text)
    said = " ".join(Elements(text).text.split())
    for note in NOTES:
        assert note.removeprefix("warning: ") in said
    assert said.index("2 warnings") < said.index("are identical") < said.index("Images")
    assert "net acceleration 4.00" in said and "48 × 32" in said and "virtual coil 3" in said
    assert "psnr_common" in said and "1.2500" in said and "request.data.key" in said
    assert "likely error over GLDM" in said and "within a factor of 1.5 of the true error in nearly every group" in said
    assert "reference: truth.npy: images" in said and "12.3 s" in said
    assert f"python PCsampling_demo_svd.py --data '{EVIL}'" in said


def test_warnings_of_the_reader_stand_with_the_others(tmp_path):
    found = "scan.h5: 4 frames\nwarning: no readouts for phase 3; skipped"
    text = write(tmp_path / "report.html", notes=["noise: none"], found=found).read_text()
    said = " ".join(Elements(text).text.split())
    assert said.count("no readouts for phase 3") == 1 and "warning:" not in said and "No warnings." not in said
    assert said.index("no readouts for phase 3") < said.index("Images")


def test_names_are_escaped(tmp_path):
    text = write(tmp_path / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert len(re.findall(r"<script", text)) == 2
    assert EVIL in unescape(re.search(r"<h1>(.*)</h1>", text)[1])


def test_what_there_is_not_is_not_shown(tmp_path):
    text = write(tmp_path / "report.html", coils=1, reference=False, deviation=False, notes=["noise: none"]).read_text()
    elements = Elements(text)
    said = " ".join(elements.text.split())
    assert "No warnings." in said and "nothing is scored" in said and "One coil, so there are no maps" in said
    assert "no held-out quality" in said and "error against" not in said and "likely error" not in said
    assert "view" not in [attributes.get("id") for _, attributes in elements.tags]
    player = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [one["name"] for one in player["series"]] == ["zero_filled", "nearest_merge", "ou_only", "gldm"]
    assert player["likely"] is None and player["unit"] == "px" and player["spacing"] == [1, 1]


def test_geometry_of_the_scan_is_kept(tmp_path):
    geometry = Geometry(voxel_mm=(2.0, 1.5, 8.0), frame_time_ms=40.0)
    text = write(tmp_path / "report.html", geometry=geometry).read_text()
    said = " ".join(Elements(text).text.split())
    assert "2 × 1.5 × 8 mm" in said and "160 ms in all" in said
    assert "aspect-ratio: 48.0 / 96.0" in text
    player = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert player["framesPerSecond"] == 25 and player["unit"] == "mm"


def test_sixteen_frames_of_192_are_below_5_mb(tmp_path):
    assert write(tmp_path / "report.html", 16, 192, 192, coils=8).stat().st_size < 5e6


def test_an_empty_series_is_written(tmp_path):
    images = dict.fromkeys(("zero_filled", "nearest_merge", "gldm"), torch.zeros(2, 16, 16, dtype=torch.complex64))
    mask = torch.ones(2, 16, 16, dtype=torch.bool)
    scan = Scan(torch.zeros(2, 1, 16, 16, dtype=torch.complex64), mask)
    maps = torch.ones(1, 16, 16, dtype=torch.complex64)
    unknown = record(chi=None, snr=float("inf"))
    write_report(tmp_path / "report.html", scan, images, None, None, maps, [], unknown)
    assert "no noise" in (tmp_path / "report.html").read_text()


def test_the_index_has_a_row_for_each_scan_and_names_failures(tmp_path):
    finished_scan(tmp_path, "heart 1#", scored=True)
    finished_scan(tmp_path, "plain", scored=False)
    failures = {"broken<b>": "it is <i>truncated</i>; copy it"}
    write_index(tmp_path, ["heart 1#", "plain", "broken<b>", "nowhere"], failures)
    text = (tmp_path / "index.html").read_text()
    assert_self_contained(text)
    elements = Elements(text)
    links = [attributes["href"] for tag, attributes in elements.tags if tag == "a"]
    assert links == ["heart%201%23/report.html", "plain/report.html"]
    assert len([tag for tag, _ in elements.tags if tag == "img"]) == 2
    said = " ".join(elements.text.split())
    assert "2 of 4 scans" in said and "broken<b>: it is <i>truncated</i>; copy it" in said and "nowhere: " in said
    assert "31.23" in said and "0.9500" in said and "are identical" in said and "<script>alert" not in text


def test_the_index_of_nothing_but_failures(tmp_path):
    write_index(tmp_path, ["broken"], {"broken": "it is empty"})
    assert "0 of 1 scans" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("name", ["player.js", "page.css"])
def test_script_and_style_are_small_and_end_no_element(name):
    text = (TEMPLATES / name).read_text()
    assert len(text.splitlines()) < 350 and "</" not in text.replace("</b>", "")
    assert not [line for line in text.splitlines() if len(line) > 120]
    assert name != "player.js" or text.startswith('"use strict";')


def test_jinja2_is_pinned():
    assert re.search(r"^jinja2==\d", (ROOT / "requirements.txt").read_text(), re.M)


def test_a_page_that_fails_does_not_cost_the_results(tmp_path, capsys):
    write_report(tmp_path / "report.html", None, {}, None, None, None, [], {})
    assert not (tmp_path / "report.html").exists() and "report.html could not be written" in capsys.readouterr().err
