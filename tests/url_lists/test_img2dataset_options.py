"""The table of img2dataset's options in the docs names each of theirs, and only options of ours."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

from laion_assets.download.options import DownloadOptions

PAGE = Path(__file__).parents[2] / "docs" / "url-lists.md"
NO_OPTIONS = {"download", "where", "exif", "sha256", "md5", "source_sha256"}


def test_the_table_names_each_option() -> None:
    package = find_spec("img2dataset")
    assert package
    assert package.origin
    source = ast.parse(Path(package.origin).with_name("main.py").read_text("utf-8"))
    (download,) = (
        node
        for node in ast.walk(source)
        if isinstance(node, ast.FunctionDef) and node.name == "download"
    )
    theirs = {argument.arg for argument in download.args.args}
    table = PAGE.read_text("utf-8").partition("| img2dataset |")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert {name for row in rows for name in re.findall("`--(.*?)`", row[0])} == theirs
    ours = {name for row in rows for name in re.findall("`([a-z_]+[a-z0-9])`", row[1])}
    assert ours - NO_OPTIONS <= {*DownloadOptions.model_fields}
    assert len(ours) > 10
