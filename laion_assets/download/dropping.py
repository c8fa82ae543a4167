"""Make a shard of an earlier one that lacks nothing but rows: those that left or are listed now.

The bytes of the rest are copied; nothing is fetched or decoded, and no process is started. What
does not belong here: shards with new or changed rows (:mod:`.shard_work`).
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_assets.download import sample_json
from laion_assets.download.listed_rows import LOOKED_AT
from laion_assets.download.numbering import ShardRows
from laion_assets.download.outcomes import OUTCOME_COLUMNS, SUCCESS, Outcome, histories_of
from laion_assets.download.previous import Known
from laion_assets.download.rules import Rules
from laion_assets.download.shard_files import SHARD_DIGITS, files_of, read_ledger, read_shard
from laion_assets.download.shard_stats import ShardStats
from laion_assets.download.shards import pair_columns, publish_shard, read_stats
from laion_assets.files import atomic_path
from laion_assets.schemas import OUTCOME


def drop_rows(
    before: Path, out: Path, pairs: ShardRows, rules: Rules, digest: str
) -> ShardStats | None:
    """Write the shard of ``pairs`` to ``out`` from the one in ``before``; return its statistics.

    Returns None if that lacks one of these rows as it is now, or if one has to be fetched. Raises
    what reading a damaged shard raises.
    """
    stats, tar = read_stats(before, pairs.shard), files_of(before, pairs.shard)[0]
    if stats is None or rules.may_refetch(stats):
        return None
    made_with = (stats.options_digest, stats.json_version)
    if made_with != (rules.options_digest, sample_json.VERSION):
        return None
    table, ledger = read_shard(tar), read_ledger(tar)
    numbers = np.array([int(key[SHARD_DIGITS:]) for key in table["key"].to_pylist()], np.int32)
    held = np.isin(numbers, pairs.rows)
    table, ledger = table.filter(pa.array(held)), ledger.filter(pa.array(held))
    if numbers[held].tolist() != pairs.rows.tolist():
        return None
    schema, wanted = pair_columns(pairs.table)
    own = [name for name in schema.names if name not in OUTCOME.names]
    if table.select(own).to_pylist() != wanted:
        return None
    outcomes = [Outcome(**row) for row in table.select(list(OUTCOME_COLUMNS)).to_pylist()]
    refused = _refused(table, ledger, outcomes, rules, stats)
    if refused is None:
        return None
    for row, outcome in refused.items():
        outcomes[row] = outcome
    if refused:
        table = _with_outcomes(table, outcomes)
    keys = table["key"].to_pylist()
    kept = {key for key, outcome in zip(keys, outcomes, strict=True) if outcome.status == SUCCESS}
    made = ShardStats.of_rows(
        table["url"].to_pylist(),
        outcomes,
        started=stats.start_time,
        ended=stats.end_time,
        asked_for=0,
        changed=0,
        received_bytes=0,
        options_digest=rules.options_digest,
        input_digest=digest,
        next_row=pairs.next_row,
    )
    target = files_of(out, pairs.shard)[0]
    with atomic_path(target) as beside:
        whole = copy_samples(tar, beside, kept) == kept
    if not whole:
        return None  # the tar has lost one
    made = replace(made, tar_bytes=target.stat().st_size)
    publish_shard(out, pairs.shard, table, ledger, made)
    return made


def _refused(
    table: pa.Table, ledger: pa.Table, outcomes: list[Outcome], rules: Rules, stats: ShardStats
) -> Mapping[int, Outcome] | None:
    """Row -> its new outcome, for rows that a list names now; None if one has left its list."""
    named, refused = rules.listed_rows(table.select(LOOKED_AT))
    if refused - named:
        return None
    found: dict[int, Outcome] = {}
    for row in sorted(named - refused):
        (history,) = histories_of(ledger.slice(row, 1))
        known = Known(outcomes[row], history, stats.options_digest, None)
        outcome = rules.settled(table["url"][row].as_py(), known)
        if outcome is None:
            return None
        found[row] = outcome
    return found


def _with_outcomes(table: pa.Table, outcomes: list[Outcome]) -> pa.Table:
    for name in OUTCOME_COLUMNS:
        at = table.schema.get_field_index(name)
        values = [getattr(outcome, name) for outcome in outcomes]
        table = table.set_column(at, table.field(at), pa.array(values, table.field(at).type))
    return table


def copy_samples(tar: Path, to: Path, keys: Collection[str]) -> set[str]:
    """Copy the members of a tar that belong to samples of these keys, as the bytes that they are.

    Returns the keys that it has. Raises ``tarfile.TarError`` for a damaged tar.
    """
    found: set[str] = set()
    with tar.open("rb") as source, to.open("wb") as target:
        with tarfile.open(fileobj=source, mode="r:") as archive:
            members = archive.getmembers()
        for member in members:
            key = member.name.rpartition("/")[2].partition(".")[0]
            if key in keys:
                found.add(key)
                head = member.offset_data - member.offset
                source.seek(member.offset)
                target.write(source.read(head + _whole(member.size, tarfile.BLOCKSIZE)))
        # As tarfile ends an archive: two empty blocks, filled up to a whole record.
        size = target.tell()
        ended = _whole(size + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)
        target.write(bytes(ended - size))
    return found


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit
