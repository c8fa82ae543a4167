"""An asset is retried after transient errors, and after no others."""

import errno
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.crawl.source import CrawlNotReadyError, CrawlSourceError, NoSuchSegmentError
from laion_assets.dedup.ledger import LedgerError
from laion_assets.defs.build import build_defs
from laion_assets.defs.declaration import Asset
from laion_assets.defs.retries import is_transient, retrying_transient
from laion_assets.errors import PermanentError, TransientError
from laion_assets.files import LockedError
from laion_assets.lake import (
    NotPublishedError,
    ObjectStoreError,
    PartitionBusyError,
    UnavailableError,
)
from laion_assets.layout import INDEX_CODEC
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.segment import PermanentSegmentError, SegmentError, extract_segment
from laion_assets.settings import Retries, Retry, Settings

QUICK = Settings(retries=Retries(local=Retry(times=2, delay_s=0.01)))


def made_by(errors: list[Exception]) -> tuple[dg.ExecuteInProcessResult, int]:
    """Run an asset that fails with each error in turn; return its run and the number of tries."""
    tries = []

    @dg.asset(**Asset(INDEX_CODEC, group="index", revision=1).arguments(QUICK))
    @retrying_transient
    def unsteady() -> None:
        tries.append(1)
        if len(tries) <= len(errors):
            raise errors[len(tries) - 1]

    job = dg.Definitions(assets=[unsteady]).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(raise_on_error=False), len(tries)


def test_transient_errors_are_retried_a_limited_number_of_times() -> None:
    result, tries = made_by([PartitionBusyError("busy"), ConnectionResetError()])
    assert (result.success, tries) == (True, 3)
    result, tries = made_by([TimeoutError() for _ in range(9)])
    assert (result.success, tries) == (False, 3)


def test_any_other_error_fails_at_once_and_names_itself() -> None:
    result, tries = made_by([ValueError("the codec is for width 512")])
    assert (result.success, tries) == (False, 1)
    [failure] = result.filter_events(lambda event: event.is_step_failure)
    data = failure.step_failure_data
    assert data.user_failure_data is not None
    assert data.user_failure_data.description == "ValueError: the codec is for width 512"
    assert data.error is not None
    assert data.error.cause is not None
    assert "in unsteady" in "".join(data.error.cause.stack)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (CrawlNotReadyError(), True),
        (NoSuchSegmentError(), False),
        (SegmentError("a worker process died"), True),
        (PermanentSegmentError("FileNotFoundError: a.warc.wat.gz"), False),
        (NotPublishedError(), False),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (OSError(errno.ENOSPC, "no space left"), False),
        (MemoryError(), False),
        (UnavailableError("503"), True),
        (ObjectStoreError("access denied"), False),
    ],
)
def test_which_errors_are_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient
    wrapped = RuntimeError("while it was made")
    wrapped.__cause__ = error
    assert is_transient(wrapped) is transient


def test_an_error_of_tomorrow_is_judged_by_its_base_class() -> None:
    class LeaseLostError(TransientError):
        pass

    class WrongKeyError(PermanentError):
        pass

    assert is_transient(LeaseLostError())
    assert not is_transient(WrongKeyError())
    wrapped = LeaseLostError()
    wrapped.__cause__ = WrongKeyError()
    assert not is_transient(wrapped)


@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "full"), PermissionError("access denied")])
def test_a_permanent_cause_decides_whatever_wraps_it(cause: OSError) -> None:
    for wrapped in (CrawlSourceError("could not be read"), LockedError(), UnavailableError("503")):
        wrapped.__cause__ = cause
        assert not is_transient(wrapped)


def test_a_ledger_on_a_store_that_stutters_is_read_again() -> None:
    damaged, stutters = LedgerError("delete it"), LedgerError("delete it")
    stutters.__cause__ = OSError(errno.ESTALE, "stale file handle")
    assert is_transient(stutters)
    assert not is_transient(damaged)


def full_disk(wat_file: str, to: Path) -> None:
    """Fail in a worker process."""
    try:
        raise OSError(errno.ENOSPC, "no space left")
    except OSError as error:
        raise CrawlSourceError(f"{wat_file} could not be read") from error


def test_a_full_disk_is_permanent_in_a_worker_process_too(tmp_path: Path) -> None:
    with pytest.raises(PermanentSegmentError, match="could not be read") as caught:
        extract_segment(
            ["a.warc.wat.gz"],
            full_disk,
            tmp_path,
            PairRules(),
            crawl="CC-MAIN-2000-05",
            segment="00",
            workers=1,
        )
    assert not is_transient(caught.value)


def test_every_asset_has_its_policy() -> None:
    for asset in build_defs(Settings()).assets or ():
        if isinstance(asset, dg.AssetsDefinition):
            policy = asset.op.retry_policy
            assert policy is not None
            assert policy.backoff is dg.Backoff.EXPONENTIAL
            slow = asset.key.path[-1] in ("wat_manifest", "pair_parquet", "image_shards")
            assert policy.max_retries == (5 if slow else 3)
