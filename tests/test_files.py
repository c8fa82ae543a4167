from __future__ import annotations

from pathlib import Path

import pytest

from laion_assets.files import atomic_path, sha256_file, write_json


def test_a_failed_write_leaves_the_old_version(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data.parquet"
    with atomic_path(target) as beside:
        assert beside.suffix == ".parquet"
        beside.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(target) as beside:
        beside.write_text("half of the new")
        raise RuntimeError("disk")
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["data.parquet"]


def test_equal_values_are_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": 1})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
