"""Rewrites the table of licences in installing.md, from what is installed: `make licences`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from benchmarks.table import markdown

ROOT: Final = Path(__file__).parent.parent
_KINDS: Final[Mapping[str, str]] = {
    "NVIDIA's own terms": "nvidia|cuda-toolkit",
    "LGPL": "lgpl|lesser general public",
    "GPL": r"(^|\W)a?gpl|general public",
    "MPL 2.0 (changes to its files stay open)": "mpl|mozilla",
    "permissive": "mit|bsd|apache|psf|python software|isc|zlib|cnri|hpnd|unlicense|public domain",
}
"""What a licence asks for -> how its name is recognized; the first that fits counts."""
_FREE: Final = "permissive"
_UNKNOWN: Final = "not named in the metadata"


def pinned(path: Path = ROOT / "locked.txt") -> set[str]:
    """Names of the packages that a file pins."""
    return {plain(name) for name in re.findall(r"^([\w.-]+)==", path.read_text(), re.MULTILINE)}


def plain(name: str) -> str:
    """A package's name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """The licence in a package's metadata: the expression, else classifiers, else the text."""
    about = package.metadata
    classifiers = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    named = about.get("License-Expression") or " ".join(classifiers) or about.get("License") or ""
    return named.splitlines()[0] if named else ""


def kind(name: str, terms: str) -> str:
    """Which of the kinds a package's licence is."""
    for text, pattern in _KINDS.items():
        # NVIDIA's wheels are recognized by their names, too.
        if re.search(pattern, terms, re.IGNORECASE) or (
            text.startswith("NVIDIA") and re.match(pattern, name)
        ):
            return text
    return _UNKNOWN


def table(packages: Iterable[Distribution]) -> str:
    """Return the table: kinds of licence, the number of packages, and which, but for most."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in packages:
        name = plain(package.metadata["Name"])
        found[kind(name, licence(package))].add(name)
    rows = [
        [text, len(names), "" if text == _FREE else ", ".join(sorted(names))]
        for text, names in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    return markdown(("licence", "packages", "which"), rows)


def main() -> None:
    wanted = pinned()
    installed = [p for p in distributions() if plain(p.metadata["Name"]) in wanted]
    page = ROOT / "docs" / "installing.md"
    begin, end = "<!-- licences: begin -->\n", "<!-- licences: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}{table(installed)}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
