from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from laion_assets.download.tars import ImageBytes

BYTES = {"000000000": b"a" * 700, "000000001": b"b" * 512, "000000002": b"", "é" * 45: b"long"}


def write(tar: Path, how: int) -> Path:
    with tarfile.open(tar, "w", format=how) as archive:
        for key, content in BYTES.items():
            for suffix, data in ((".jpg", content), (".txt", b"text"), (".json", b"{}" * 400)):
                member = tarfile.TarInfo(f"./some folder/{key}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return tar


def found(tar: Path) -> dict[str, bytes]:
    with ImageBytes(tar) as images:
        return {key: images.read(key) for key in BYTES}


@pytest.mark.parametrize("how", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_by_key_from_tars_of_all_formats(tmp_path: Path, how: int) -> None:
    """The last name is too long for a plain header."""
    tar = write(tmp_path / "a.tar", how)
    assert found(tar) == BYTES
    with ImageBytes(tar) as images:
        assert images.read("000000009") == b""


@pytest.mark.parametrize("place", [100, 130, 150, 156, 260, 345])
def test_a_damaged_header_costs_its_member_alone(tmp_path: Path, place: int) -> None:
    tar = write(tmp_path / "a.tar", tarfile.PAX_FORMAT)
    with tarfile.open(tar) as archive:
        start = archive.getmember(f"./some folder/{'000000001'}.jpg").offset
    content = bytearray(tar.read_bytes())
    content[start + place] ^= 0x15
    tar.write_bytes(content)
    assert found(tar) == BYTES | {"000000001": b""}


def test_a_cut_tar_has_the_images_before_the_cut(tmp_path: Path) -> None:
    tar = write(tmp_path / "a.tar", tarfile.USTAR_FORMAT)
    with tarfile.open(tar) as archive:
        start = archive.getmember("./some folder/000000001.jpg").offset_data
    tar.write_bytes(tar.read_bytes()[: start + 100])
    assert found(tar) == dict.fromkeys(BYTES, b"") | {"000000000": BYTES["000000000"]}
    tar.write_bytes(b"")
    assert found(tar) == dict.fromkeys(BYTES, b"")
