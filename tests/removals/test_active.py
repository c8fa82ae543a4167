from __future__ import annotations

import hashlib
from pathlib import Path

from laion_assets.removals.active import new_since, note_resolved, read_lists, text_digests
from laion_assets.removals.entry import key_of

IMAGE = key_of("sha256", "a" * 64)
URL = "http://a.test/1.jpg"
RESOLVED = (IMAGE, hashlib.sha256(URL.encode()).digest())


def test_a_url_that_led_to_a_listed_image_counts_while_the_image_is_listed(tmp_path: Path) -> None:
    (tmp_path / "blocklists").mkdir()
    text = tmp_path / "blocklists" / "a.txt"
    text.write_text("sha256:" + "a" * 64 + "\n")
    before, texts = read_lists(tmp_path), text_digests(tmp_path)
    assert not before.blocklists.matches_url(URL)

    assert note_resolved(tmp_path, "blocklists", {RESOLVED}) == 1
    assert note_resolved(tmp_path, "blocklists", {RESOLVED}) == 0
    now = read_lists(tmp_path)
    assert now.blocklists.matches_url(URL)
    assert now.digests != before.digests
    assert text_digests(tmp_path) == texts
    assert new_since(tmp_path, "blocklists", texts["blocklists"]).matches_url(URL)
    assert not new_since(tmp_path, "blocklists", texts["blocklists"]).matches_image("a" * 64, "")

    text.write_text("host:elsewhere.test\n")
    assert not read_lists(tmp_path).blocklists.matches_url(URL)
