"""Assets read only what has been compared with its manifest."""

import ast
from collections import Counter
from pathlib import Path

from laion_assets.defs import assets
from laion_assets.defs.assets import near_duplicates
from laion_assets.lake import LocalLake
from laion_assets.layout import NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.signatures import SIGNATURES

UNVERIFIED = {
    # What a training of millions of samples learns does not hang on one of them.
    ("index_codec", "published"): 1,
    ("dalle_samples", "published"): 2,
    # Pictures for people.
    ("scored_pairs", "folder"): 1,
    ("filtered_subset", "folder"): 1,
    ("dataset_report", "folder"): 2,
    # The recall is measured by them; what is indexed are files of knn_index.
    ("search_index", "published"): 1,
    # Earlier versions of their own, of which each file is compared before it is taken over.
    ("search_index", "folder"): 1,
    ("near_duplicates", "folder"): 1,
}


def test_whatever_else_an_asset_reads_is_verified() -> None:
    found: Counter[tuple[str, str]] = Counter()
    for path in Path(assets.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"published", "folder", "fetch"}:
                of = node.value
                if "store" in {getattr(of, "id", ""), getattr(of, "attr", "")}:
                    found[path.stem, node.attr] += 1
    assert found == UNVERIFIED


def test_damaged_signatures_are_made_again(tmp_path: Path) -> None:
    lake, key = LocalLake.at(tmp_path), SegmentKey("CC-MAIN-2000-05", "00")
    assert near_duplicates._earlier(lake, key) == (None, {})
    with lake.publish(NEAR_DUPLICATES, key, inputs={}, code_version="1") as staging:
        (staging.path / SIGNATURES).write_bytes(b"signatures")
    folder = lake.folder(NEAR_DUPLICATES, key)
    assert near_duplicates._earlier(lake, key) == (folder, {})
    (folder / SIGNATURES).write_bytes(b"sIgnatures")
    earlier, damaged = near_duplicates._earlier(lake, key)
    assert (earlier, [*damaged]) == (None, [SIGNATURES])
