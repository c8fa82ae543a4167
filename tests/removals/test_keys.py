from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.removals.keys import Column, ColumnWriter, keys_of


@pytest.mark.parametrize("width", [8, 16, 32])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_column_is_a_set_of_bytes(width: int, data: st.DataObject) -> None:
    """Includes keys that share their first bytes, which digests hardly ever do."""
    key = st.one_of(
        st.binary(min_size=width, max_size=width),
        st.integers(0, 300).map(lambda n: n.to_bytes(width, "big")),
        st.integers(0, 300).map(lambda n: n.to_bytes(width, "little")),
    )
    inside, asked = data.draw(st.lists(key)), data.draw(st.lists(key))
    column = Column.of(keys_of(b"".join(inside), width))
    asked += inside
    expected = [key in set(inside) for key in asked]
    assert column.has(keys_of(b"".join(asked), width)).tolist() == expected
    assert [column.has_one(key) for key in asked] == expected
    assert b"".join(block.tobytes() for block in column.blocks(7)) == b"".join(sorted(set(inside)))
    other = Column.of(keys_of(b"".join(asked[::2]), width))
    left = b"".join(block.tobytes() for block in column.without(other).blocks())
    assert left == b"".join(sorted(set(inside) - set(asked[::2])))


def test_a_column_that_spills_is_the_same(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 256, (5000, 16), dtype=np.uint8)
    keys[1000:2000] = keys[:1000]
    keys[:, 0] &= 15
    for kind, spill in (("large", 1 << 30), ("small", 1000)):
        writer = ColumnWriter(tmp_path, kind, 16, spill)
        for start in range(0, len(keys), 7):
            writer.add(keys[start : start + 7].tobytes())
        writer.write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("large.head", "large.tail", "small.head", "small.tail")
    ]
    for part in ("head", "tail"):
        assert (tmp_path / f"large.{part}").read_bytes() == (
            tmp_path / f"small.{part}"
        ).read_bytes()
    column = Column.open(tmp_path, "small", 16)
    assert len(column) == 4000
    assert column.has(keys).all()
