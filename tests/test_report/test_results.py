"""What a command prints at its end."""

import math

from report.results import METRICS, summary
from report.tables import markdown, write_csv


def test_numbers_that_are_none_are_dashes_for_people_and_stay_in_csv(tmp_path):
    row = {**dict.fromkeys(METRICS, 1.25), "method": "gldm", "snr": math.inf, "edge_time": math.nan}
    table = markdown([row], METRICS)
    assert "inf" not in table and "nan" not in table and table.count("–") == 2
    write_csv(tmp_path / "metrics.csv", [row], METRICS)
    assert "nan" in (tmp_path / "metrics.csv").read_text() and "inf" in (tmp_path / "metrics.csv").read_text()


def test_warnings_are_counted_and_not_repeated(tmp_path):
    said = ["noise: none", "warning: this is doubtful", "warning: that is doubtful"]
    text = summary(tmp_path, [], said)
    assert text.endswith("2 warnings: see above and report.html") and "doubtful" not in text
    assert summary(tmp_path, [], said[:2]).endswith("1 warning: see above and report.html")
    assert "above" not in summary(tmp_path, [], said[:1])


def test_the_table_says_what_its_rows_are(tmp_path):
    text = summary(tmp_path, [{**dict.fromkeys(METRICS, 1.25), "method": "nearest_merge"}])
    assert "nearest_merge is view sharing with the nearest frames" in text
