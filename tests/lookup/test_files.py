"""Look-up files: every entry is found by its hash, and a damaged file is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laion_assets.lookup.files import Hashes, LookupDamagedError, find, write

N = 20_000


def some(seed: int, n: int = N) -> Hashes:
    return np.random.default_rng(seed).integers(0, 1 << 64, n, dtype=np.uint64)


def asked(*values: int) -> Hashes:
    return np.unique(np.array(values, np.uint64))


@pytest.mark.parametrize("n", [0, 1, 31, 32, 63, 64, 65, 1000, N])
def test_what_was_written_is_found_and_nothing_else(tmp_path: Path, n: int) -> None:
    hashes, path = some(1, n), tmp_path / "url"
    rows = np.arange(n, dtype=np.uint32) * 3
    write(path, hashes, rows)
    for at in range(0, n, 37):
        assert find(path, asked(hashes[at])).tolist() == [3 * at]
    assert find(path, some(2, 1)).tolist() == []
    # Many at a time, fewer and more than there are entries.
    assert find(path, np.sort(hashes[::7])).tolist() == rows[::7].tolist()
    assert find(path, np.unique(np.concatenate([some(3, N), hashes]))).tolist() == rows.tolist()
    assert find(path, np.unique(some(4))).tolist() == []
    assert find(path, asked()).tolist() == []
    assert path.stat().st_size <= 8.25 * n + 32


def test_a_key_may_name_several_rows(tmp_path: Path) -> None:
    hashes = np.concatenate([some(1), some(1)[:500]])
    write(tmp_path / "url", hashes, np.arange(len(hashes), dtype=np.uint32))
    assert find(tmp_path / "url", asked(hashes[5])).tolist() == [5, N + 5]
    many = find(tmp_path / "url", np.sort(hashes[:1000]))
    assert many.tolist() == [*range(1000), *range(N, N + 500)]


@pytest.mark.parametrize("few", [True, False])
def test_hashes_that_begin_alike_are_told_apart(tmp_path: Path, few: bool) -> None:
    """All in one bucket, as no digest's are; one row beyond what a file compares is a candidate."""
    hashes = (np.uint64(7) << np.uint64(60)) + (np.arange(N, dtype=np.uint64) << np.uint64(24))
    write(tmp_path / "url", hashes, np.arange(N, dtype=np.uint32))

    def found(value: int) -> list[int]:
        more = () if few else some(5, 1000)
        return find(tmp_path / "url", asked(value, *more)).tolist()

    for row in (0, 1, 4711, N - 1):
        assert found(int(hashes[row])) == [row]
        assert found(int(hashes[row]) + (1 << 23)) == []
        assert found(int(hashes[row]) ^ (1 << 63)) == []
        assert found(int(hashes[row]) + 1) == [row]
    assert found(int(hashes[-1]) + (1 << 24)) == []


def test_the_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    hashes, rows = some(1), np.arange(N, dtype=np.uint32)
    write(tmp_path / "a", hashes, rows)
    order = np.random.default_rng(2).permutation(np.repeat(rows, 2))
    write(tmp_path / "b", hashes[order], rows[order])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("size", [0, 7, 15, 16, 1000, -8, -1])
def test_a_cut_file_says_what_to_do(tmp_path: Path, size: int) -> None:
    path = tmp_path / "url"
    write(path, some(1), np.arange(N, dtype=np.uint32))
    path.write_bytes(path.read_bytes()[:size])
    for hashes in (some(2, 1), np.unique(some(3))):
        with pytest.raises(LookupDamagedError, match="url is damaged: materialize its partition"):
            find(path, hashes)


def test_a_directory_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    path, hashes = tmp_path / "url", some(1)
    write(path, hashes, np.arange(N, dtype=np.uint32))
    content = bytearray(path.read_bytes())
    content[16 : 16 + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    for wanted in (asked(0), np.sort(hashes)):
        with pytest.raises(LookupDamagedError):
            find(path, wanted)


def test_an_absent_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find(tmp_path / "url", asked(1))
