from __future__ import annotations

import json
from pathlib import Path

import pytest

from laion_assets.safety.options import SafetyOptions
from laion_assets.safety.prompts import HERE, PromptsError, load_prompts


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("*.json")))
def test_shipped_prompts_load_and_say_where_they_are_from(name: str) -> None:
    prompts = load_prompts(name)
    assert prompts.name == name
    assert prompts.version >= 1
    assert prompts.source
    assert all(row.text == row.text.strip() for row in prompts.categories)


def test_the_default_is_the_original_with_its_numbers() -> None:
    prompts = load_prompts(SafetyOptions().prompts)
    flags = [row.nsfw for row in prompts.categories]
    # The original: the first 19 are safe, the first 4 ages are under age, the first 21 no animals.
    assert flags == [False] * 19 + [True] * 17
    assert [row.underage for row in prompts.underage] == [True] * 4 + [False] * 4
    assert [row.animal for row in prompts.animals] == [False] * 21 + [True] * 12


def test_the_digest_follows_every_prompt_flag_and_word(tmp_path: Path) -> None:
    content = json.loads((HERE / "laion400m.json").read_text())
    words = tmp_path / "words.txt"
    words.write_text("# name: mine\nkid\n")

    def digest(**changes: object) -> str:
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps(content | changes))
        return load_prompts(str(path)).digest

    original = digest()
    assert original == load_prompts("laion400m").digest
    assert digest(about="in other words") == original
    flipped = [dict(row) for row in content["categories"]]
    flipped[0]["nsfw"] = True
    different = [digest(categories=flipped), digest(words=str(words)), digest(version=2)]
    assert len({original, *different}) == 4


def test_unknown_and_wrong_prompts_are_named(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"nobody.*laion400m"):
        load_prompts("nobody")
    path = tmp_path / "prompts.json"
    path.write_text('{"name": "x"}')
    with pytest.raises(PromptsError, match=r"prompts\.json"):
        load_prompts(str(path))
