"""The check ``files_whole``: the files of an asset are those of its manifests.

A run reads a share of each asset's partitions, and those again that the last run found damaged: a
failure stays until the damage is mended.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import dagster as dg

from laion_assets.defs.internals import AssetJob, last_evaluation
from laion_assets.lake import Choice, Damage, Lake, Partition, Verified, find_damage
from laion_assets.layout import SegmentKey
from laion_assets.settings import Verification
from resources.lake import LakeResource

CHECK: Final = "verify"
"""The operation that evaluates the check of all assets."""
JOB: Final = "verify_lake"
"""Not the name of the operation: a code location with a job and an operation of one name fails."""
FILES_WHOLE: Final = "files_whole"
_SHOWN: Final = 20
"""Damaged files that a check's description names."""


class Share(dg.Config):
    """Which partitions a run reads: share ``number`` of ``shares``, from 0."""

    number: int = 0
    shares: int = 1


def build(assets: Iterable[str]) -> dg.AssetChecksDefinition:
    """Build the check of these assets. Run by hand, it reads all their partitions."""
    specs = [
        dg.AssetCheckSpec(
            FILES_WHOLE,
            asset=asset,
            description="The files have the sizes and SHA-256 that the manifests say.",
        )
        for asset in assets
    ]

    @dg.multi_asset_check(name=CHECK, specs=specs, can_subset=True)
    def check(
        context: dg.AssetCheckExecutionContext, config: Share, lake: LakeResource
    ) -> Iterator[dg.AssetCheckResult]:
        opened = lake.open()
        # Beside assets that are being made, as the UI starts it: is what was damaged mended?
        alone = not context.run.asset_selection
        share = (config.number, config.shares) if alone else None
        for key in sorted(context.selected_asset_check_keys):
            asset = key.asset_key.to_user_string()
            yield _result(asset, opened, Choice([asset], share=share, also=_damaged(context, key)))

    return check


def _result(asset: str, lake: Lake, choice: Choice) -> dg.AssetCheckResult:
    verified = Verified()
    damages = list(find_damage(lake, choice.partitions(lake), verified))
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=FILES_WHOLE,
        passed=not damages,
        description=_description(damages) if damages else _good(verified, choice),
        metadata={
            "partitions": verified.partitions,
            "files": verified.files,
            "bytes": verified.bytes,
            "share": f"{choice.share[0] + 1} of {choice.share[1]}"
            if choice.share
            else "what was damaged before",
            "damaged": dg.MetadataValue.json(sorted({_names(d.partition) for d in damages})),
        },
    )


def _description(damages: Sequence[Damage]) -> str:
    named = "; ".join(map(str, damages[:_SHOWN]))
    more = f"; and {len(damages) - _SHOWN} more" if len(damages) > _SHOWN else ""
    return (
        f"{named}{more}. Restore these files from a backup, or materialize their partitions "
        "again; where the manifest or search_index is damaged, set the partition aside first "
        "(`laion-assets verify --set-aside`)"
    )


def _good(verified: Verified, choice: Choice) -> str:
    if verified.partitions or choice.share is not None:
        return f"{verified}"
    return f"nothing was known to be damaged; the job `{JOB}` reads the files"


def _names(partition: Partition) -> tuple[str, str]:
    return (partition.key.crawl, partition.key.segment) if partition.key else ("", "")


def _damaged(context: dg.AssetCheckExecutionContext, check: dg.AssetCheckKey) -> list[Partition]:
    """The partitions that the check's last evaluation found damaged."""
    evaluation = last_evaluation(context.instance, check)
    if evaluation is None:
        return []
    names: Any = evaluation.metadata["damaged"].value
    asset = check.asset_key.to_user_string()
    return [Partition(asset, SegmentKey(*pair) if any(pair) else None) for pair in names]


def verify_job(check: dg.AssetChecksDefinition) -> AssetJob:
    return dg.define_asset_job(
        JOB,
        dg.AssetSelection.checks(check),
        executor_def=dg.in_process_executor,
        description="Compares a share of the lake's files with their manifests.",
    )


def schedules(job: AssetJob, policy: Verification) -> list[dg.ScheduleDefinition]:
    """Each run takes the next share."""
    if not policy.at:
        return []

    @dg.schedule(
        job=job,
        cron_schedule=policy.at,
        name="verify_share",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def verify_share(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        number = context.scheduled_execution_time.toordinal() % policy.shares
        share = Share(number=number, shares=policy.shares)
        return dg.RunRequest(run_config=dg.RunConfig(ops={CHECK: share}))

    return [verify_share]
