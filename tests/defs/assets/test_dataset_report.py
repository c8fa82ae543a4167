from __future__ import annotations

from pathlib import Path

from laion_assets.defs.assets.dataset_report import links
from laion_assets.search.options import ServeOptions
from laion_assets.settings import load_settings, sample_config

REPORT = Path("/lake/dataset_report/report.html")


def test_the_ui_links_the_report_where_it_is_served() -> None:
    sample = links(REPORT, load_settings(sample_config()).serve)
    assert sample["report"].value == str(REPORT)
    assert sample["report_page"].value == "http://127.0.0.1:8800/report"
    public = ServeOptions(report=True, hosts=("*.example.org", "search.example.org"))
    assert links(REPORT, public)["report_page"].value == "https://search.example.org/report"
    assert set(links(REPORT, ServeOptions())) == {"report"}
