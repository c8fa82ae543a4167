"""The file of hashes pins what the constraints pin, and the licences are told apart."""

from __future__ import annotations

import re

import pytest

from docs.licences import ROOT, kind, pinned, plain

PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)(.*(?:\n .*)*)", re.MULTILINE)


def pins(name: str) -> dict[str, tuple[str, str]]:
    text = (ROOT / name).read_text()
    return {plain(package): (version, rest) for package, version, rest in PIN.findall(text)}


def test_what_is_locked_is_what_is_constrained() -> None:
    locked, constraints = pins("locked.txt"), pins("constraints.txt")
    both = locked.keys() & constraints.keys()
    assert len(both) > 200
    differ = [name for name in both if locked[name][0] != constraints[name][0]]
    assert not differ, "run: make lock"


def test_every_locked_file_has_a_hash() -> None:
    locked = pins("locked.txt")
    assert locked.keys() == pinned()
    for name, (_, rest) in locked.items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest), name
    assert "://" not in (ROOT / "locked.txt").read_text()


@pytest.mark.parametrize(
    ("name", "terms", "expected"),
    [
        ("torch", "Apache-2.0 AND MIT", "permissive"),
        ("psycopg2-binary", "GNU Library or Lesser General Public License (LGPL)", "LGPL"),
        ("x", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)", "GPL"),
        ("x", "AGPL-3.0-only", "GPL"),
        ("certifi", "Mozilla Public License 2.0 (MPL 2.0)", "MPL"),
        ("nvidia-nccl-cu13", "", "NVIDIA"),
        ("x", "", "not named"),
    ],
)
def test_a_licence_has_its_kind(name: str, terms: str, expected: str) -> None:
    assert kind(name, terms).startswith(expected)
