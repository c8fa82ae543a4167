from __future__ import annotations

from pathlib import Path
from typing import Any

from laion_assets.preflight.record import in_real_world, record, unchecked
from laion_assets.settings import Settings, load_settings, sample_config

REAL = {"collinfo_url": "https://crawl.test/collinfo.json", "data_url": "s3://commoncrawl/"}


def settings(tmp_path: Path, **sections: Any) -> Settings:
    lake = {"root": str(tmp_path / "lake")}
    return Settings.model_validate({"lake": lake, "crawl_source": REAL} | sections)


def test_what_is_on_this_machine_is_not_the_real_world() -> None:
    for collinfo, data, real in [
        ("http://127.0.0.1:8799/collinfo.json", "http://localhost:8799/", False),
        ("http://[::1]/collinfo.json", "/data/crawl", False),
        ("file:///data/collinfo.json", "file:///data/", False),
        ("http://127.0.0.1/collinfo.json", "s3://commoncrawl/", True),
        ("https://index.commoncrawl.org/collinfo.json", "/data/crawl", True),
        ("http://10.0.0.1/collinfo.json", "/data/crawl", True),
    ]:
        source = {"collinfo_url": collinfo, "data_url": data}
        assert in_real_world(Settings.model_validate({"crawl_source": source})) is real, source


def test_a_list_is_of_the_real_world_unless_its_hosts_are_here(tmp_path: Path) -> None:
    here = {"collinfo_url": "http://127.0.0.1/collinfo.json", "data_url": "http://127.0.0.1/"}
    for files, connect_to, real in [
        ("http://127.0.0.1/a.csv", {"*.test": "127.0.0.1:80"}, False),
        ("/data/a.csv", {"*.test": "127.0.0.1:80", "a.test": "192.0.2.1:80"}, True),
        ("/data/a.csv", {}, True),
        ("https://a.example/a.csv", {"*.test": "127.0.0.1:80"}, True),
    ]:
        of = settings(
            tmp_path,
            crawl_source=here,
            lists=[{"name": "mine", "files": [files]}],
            download={"connect_to": connect_to},
        )
        assert in_real_world(of) is real, files
        assert bool(unchecked(of)) is real
    assert not in_real_world(load_settings(sample_config()))


def test_nothing_is_asked_until_the_check_has_passed(tmp_path: Path) -> None:
    of = settings(tmp_path)
    assert "these settings have not been checked" in unchecked(of)
    assert "laion-assets check" in unchecked(of)
    record(of, ["contact: nobody can reach you", "disk: full"])
    assert "failed: contact: nobody can reach you; disk: full." in unchecked(of)
    record(of, [])
    assert unchecked(of) == ""


def test_another_machine_takes_nothing_back_and_other_settings_do(tmp_path: Path) -> None:
    of = settings(tmp_path)
    record(of, [])
    record(of, ["GPU: none"])
    assert unchecked(of) == ""
    other = settings(tmp_path, download={"concurrency": 512})
    assert "have not been checked" in unchecked(other)
    record(other, ["open files: too few"])
    assert "open files" in unchecked(other)
    asked_less = settings(tmp_path, download={"concurrency": 512}, discovery={"newest": 1})
    assert "open files" in unchecked(asked_less)


def test_settings_may_ask_for_no_check_and_loopback_needs_none(tmp_path: Path) -> None:
    assert unchecked(settings(tmp_path, discovery={"require_check": False})) == ""
    here = {"collinfo_url": "http://127.0.0.1/collinfo.json", "data_url": "http://127.0.0.1/"}
    assert unchecked(settings(tmp_path, crawl_source=here)) == ""
    assert not (tmp_path / "lake").exists()


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    of = settings(tmp_path)
    record(of, [])
    (tmp_path / "lake" / "preflight" / "check.json").write_text("{}")
    assert "have not been checked" in unchecked(of)
