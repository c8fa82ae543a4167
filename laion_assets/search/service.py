"""The service behind the HTTP routes: index, samples, encoder, and guarded fetch of images."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cachetools import TTLCache

from laion_assets.clip.options import ClipOptions, public_key
from laion_assets.download.errors import FetchRefused
from laion_assets.download.fetch import Fetcher
from laion_assets.download.options import DownloadOptions
from laion_assets.generation.shown_samples import may_be_shown
from laion_assets.heads.score import Scorer
from laion_assets.knn.mapped import IndexDamagedError
from laion_assets.knn.query import lake_beside, subset_beside
from laion_assets.knn.samples import Located, SampleRef, Samples
from laion_assets.knn.subset import Modality, SubsetError, Subsets
from laion_assets.layout import DALLE_SAMPLES, FILTERED_SUBSET
from laion_assets.removals.active import read_lists
from laion_assets.removals.entry import ListError
from laion_assets.search.answers import metadata, shown
from laion_assets.search.api_models import (
    KnnRequest,
    MetadataRequest,
    RemovalRequest,
    SearchRequest,
    decode_image,
    split_text,
)
from laion_assets.search.clusters import Clusters
from laion_assets.search.encoder import Encoder, Vector
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.filters import Filters
from laion_assets.search.find import Found, find
from laion_assets.search.heads import SORTED, SearchHeads
from laion_assets.search.live_index import IndexVersion, LiveIndex
from laion_assets.search.metrics import Metrics
from laion_assets.search.options import ServeOptions
from laion_assets.search.removal_queue import RemovalQueue
from laion_assets.search.thumbnails import Thumbnails

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

_DAMAGES: Final = 100
_DAMAGE_SHOWN_S: Final = 600
"""Damage that a query met is named in `/healthz` so long, or until the next such query."""
_WEB: Final = ("http://", "https://")


class SearchService:
    """Everything that a request needs. Use it within ``async with service.running()``.

    ``subset`` is needed for an index outside a lake, where there are no thumbnails and no removal
    queue. ``heads`` are those of the settings. Raises
    :class:`~laion_assets.search.live_index.IndexUnavailableError`, and
    :class:`~laion_assets.knn.query.QueryError` if the subset cannot be found.
    """

    def __init__(
        self,
        index_dir: Path,
        options: ServeOptions,
        clip: ClipOptions,
        download: DownloadOptions,
        *,
        subset: Path | None = None,
        encoder: Encoder | None = None,
        heads: Sequence[Scorer] = (),
    ) -> None:
        self.options = options
        self.name = index_dir.absolute().name
        self.metrics = Metrics()
        subsets: Subsets = subset or subset_beside(index_dir)
        self._index_dir = index_dir
        self.encoder = encoder or Encoder(clip, options, observe=self.metrics.encoded)
        self.live = LiveIndex(index_dir, subsets, self._accept)
        self.heads = SearchHeads(heads, subsets)
        self.samples = Samples(subsets, options.cache_mb * 2**20, self.heads.digests)
        lake = lake_beside(index_dir)
        self._lake, self._clusters = lake, Clusters(lake)
        self.thumbnails = Thumbnails(lake, options.open_shards) if lake else None
        self.removals = (
            RemovalQueue(lake.root, options.removal_queue_bytes)
            if lake and options.removal_requests
            else None
        )
        self._fetcher = Fetcher(
            download.model_copy(
                update={
                    "max_bytes": options.max_image_bytes,
                    "total_timeout_s": options.image_url_timeout_s,
                    "retries": 0,
                    "busy_retries": 0,
                }
            )
        )
        self._searching = ThreadPoolExecutor(
            options.search_threads, thread_name_prefix="search", initializer=_one_core_a_query
        )
        self._reading = ThreadPoolExecutor(4, thread_name_prefix="thumbnails")
        self._damage: TTLCache[str, str] = TTLCache(_DAMAGES, _DAMAGE_SHOWN_S)
        self._stopping = threading.Event()
        self.metrics.watch(self.live, self.encoder)

    def _accept(self, version: IndexVersion) -> None:
        if problem := self._other_model(version):
            raise ValueError(problem)

    def _other_model(self, version: IndexVersion) -> str | None:
        """Why the encoder cannot query an index; None if it can, or is not loaded yet."""
        made_with, own = version.summary, self.encoder.identity
        if own is None or made_with.is_same(own):
            return None
        return f"it was built with the CLIP model {made_with.title}, the service uses {own.title}"

    def _refuse_other_model(self) -> None:
        # Queries by vector or by sample need no model: such an index is served to them.
        if problem := self._other_model(self.live.current):
            raise RequestRefusedError(503, "other_model", f"the index cannot be queried: {problem}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the model, follow the index, and end all of it with the block."""
        loading = self.encoder.start()
        loading.add_done_callback(lambda _: self._warn_of_other_model())
        watching = asyncio.create_task(self._watch())
        async with self._fetcher:
            try:
                yield
            finally:
                self._stopping.set()
                watching.cancel()
                loading.cancel()
                await asyncio.to_thread(self.encoder.close)
                for pool in (self._searching, self._reading):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _warn_of_other_model(self) -> None:
        if problem := self._other_model(self.live.current):
            logger.error(f"queries by text and image are refused: the index: {problem}")

    async def _watch(self) -> None:
        """Load each newly published index; no request waits for it."""
        while True:
            await asyncio.to_thread(self.heads.survey, self.live.current)
            await asyncio.sleep(self.options.watch_s)
            await asyncio.to_thread(self.live.refresh)
            await asyncio.to_thread(self.live.verify, self._stopping.is_set)

    # Queries; ``client`` names whose turn an image takes

    async def knn(self, request: KnnRequest, client: str) -> list[dict[str, Any]]:
        """Results as clip-retrieval gives them: `id`, `similarity` to the query, `url`, …"""
        self._check_name(request.indice_name)
        if request.embedding_input is not None and not (
            request.text or request.image or request.image_url
        ):
            with np.errstate(over="ignore"):  # a number beyond float32 is refused by the search
                vector = np.asarray(request.embedding_input, np.float32)
        elif request.text:
            vector = await self._text_vector(request.text)
        else:
            vector = await self._image_vector(request.image, request.image_url, client)
        vector = self.heads.steered(vector, request, self.live.current.summary)
        wanted = request.num_images if request.num_result_ids is None else request.num_result_ids
        version = self.live.current
        found = await self._find(
            version,
            vector,
            request.modality,
            min(max(wanted, 1), self.options.max_candidates),
            Filters(safe=request.use_safety_model),
            fold=request.deduplicate,
        )
        return [
            {
                **(metadata(result.located.sample) if rank < request.num_images else {}),
                "id": version.id_of(result.row),
                "similarity": result.score,
            }
            for rank, result in enumerate(found.results[:wanted])
        ]

    async def metadata(self, request: MetadataRequest) -> list[dict[str, Any]]:
        """Metadata of the ids that are of the current index; others would be other samples."""
        self._check_name(request.indice_name)
        version = self.live.current
        rows = {number: version.row_of(number) for number in request.ids}
        located = await self._in(self._searching, self._located, version, list(rows.values()))
        return [
            {"id": number, "metadata": metadata(at.sample)}
            for number, at in zip(rows, located, strict=True)
            if at is not None
        ]

    def _located(self, version: IndexVersion, rows: list[int | None]) -> list[Located | None]:
        places = [None if row is None else version.place(row) for row in rows]
        return self.samples.locate(places)

    async def search(self, request: SearchRequest, client: str) -> dict[str, Any]:
        """Results for the page; `next_offset` is null when there are no more."""
        started = time.perf_counter()
        vector = await self._query_vector(request, client)
        version = self.live.current
        self.heads.refuse_unknown(request)
        wanted = min(request.offset + request.limit, self.options.max_candidates)
        enough = SORTED if request.order_by else wanted + 1
        found = await self._find(
            version, vector, request.over, enough, request.filters, fold=request.fold
        )
        results = self.heads.ordered(found.results, request.order_by)
        more = len(results) > wanted and wanted < self.options.max_candidates
        return {
            "results": [shown(result) for result in results[request.offset : wanted]],
            "next_offset": wanted if more else None,
            "looked_at": found.looked_at,
            "exhaustive": found.looked_at >= version.summary.n,
            "languages": dict(found.languages.most_common(30)),
            "crawls": dict(found.crawls.most_common(100)),
            "index": {"name": self.name, "version": version.name, "samples": version.summary.n},
            "milliseconds": round((time.perf_counter() - started) * 1000, 1),
        }

    async def _query_vector(self, request: SearchRequest, client: str) -> Vector:
        """The sum of what is asked for, minus a share of what is excluded."""
        parts: list[npt.NDArray[np.float32]] = []
        if request.like:
            parts.append((await self.sample(request.like)).vectors["image"])
        if request.image or request.image_url:
            parts.append(await self._image_vector(request.image, request.image_url, client))
        if request.text:
            wanted, excluded = split_text(request.text)
            parts.append(await self._text_vector(wanted))
            for text in excluded[:10]:
                parts.append(-self.options.negative_weight * await self._text_vector(text))
        vector: Vector = np.sum(parts, axis=0)
        return vector

    async def _text_vector(self, text: str) -> Vector:
        if len(text) > self.options.max_text:
            raise RequestRefusedError(
                422, "text_too_long", f"at most {self.options.max_text:,} characters are allowed"
            )
        vector = await self.encoder.text(text)
        self._refuse_other_model()
        return vector

    async def _image_vector(self, image: str | None, image_url: str | None, client: str) -> Vector:
        if image:
            body = decode_image(image, self.options.max_image_bytes)
        else:
            assert image_url is not None
            body = await self._fetch(image_url)
        vector = await self.encoder.image(body, client)
        self._refuse_other_model()
        return vector

    async def _fetch(self, image_url: str) -> bytes:
        if not image_url.lower().startswith(_WEB):
            raise RequestRefusedError(422, "url_scheme", "the image's URL must be http or https")
        try:
            return (await self._fetcher.fetch(image_url)).body
        except FetchRefused as refused:
            raise RequestRefusedError(
                422,
                f"fetch_{refused.reason}",
                f"the image could not be fetched ({refused.reason}): {refused.detail}",
            ) from refused

    async def _find(
        self,
        version: IndexVersion,
        vector: npt.NDArray[np.float32],
        over: Modality,
        wanted: int,
        filters: Filters,
        *,
        fold: bool,
    ) -> Found:
        options = self.options
        started = time.perf_counter()
        try:
            found = await self._in(
                self._searching,
                find,
                version,
                self.samples,
                vector,
                over,
                wanted,
                filters,
                fold_above=options.duplicate_threshold if fold else None,
                max_candidates=options.max_candidates,
                clusters=self._clusters,
            )
        except ValueError as error:
            raise RequestRefusedError(422, "vector", str(error)) from error
        self.metrics.searched(time.perf_counter() - started, found.gone)
        return found

    # One sample

    async def sample(self, text: str) -> Located:
        """Find the sample of a reference. Raises :class:`RequestRefusedError` if it is gone."""
        try:
            ref = SampleRef.parse(text)
        except ValueError as error:
            raise RequestRefusedError(404, "no_sample", str(error)) from error
        located = await self._in(self._reading, self.samples.find, ref)
        if located is None:
            raise RequestRefusedError(
                404, "no_sample", "this sample is not, or no longer, in the dataset"
            )
        return located

    async def thumbnail(self, text: str) -> tuple[bytes, str]:
        """Image of a sample as ``(bytes, media type)``; only the dataset's samples have one."""
        located = await self.sample(text)
        if self.thumbnails is not None:
            read = await self._in(self._reading, self.thumbnails.read, located.sample)
            if read is not None:
                return read
        raise RequestRefusedError(404, "no_thumbnail", "this image is not stored here")

    async def request_removal(self, request: RemovalRequest) -> None:
        """Queue a removal request. Raises :class:`RequestRefusedError`."""
        if self.removals is None:
            raise RequestRefusedError(
                404, "no_queue", "this service does not accept removal requests"
            )
        sample = (await self.sample(request.sample)).sample
        await self._in(self._reading, self.removals.append, sample, request.reason, request.contact)

    async def generated(self) -> Path | None:
        """Path of the page of generated samples, if there is one that may be shown now."""
        return await self._in(self._reading, self._generated)

    def _generated(self) -> Path | None:
        if self._lake is None:
            return None
        folder = self._lake.folder(DALLE_SAMPLES)
        report = folder / "report.html"
        subset_of = partial(self._lake.folder, FILTERED_SUBSET)
        try:
            lists = read_lists(self._lake.root)
            shown = report.is_file() and may_be_shown(folder, lists, subset_of)
        except (OSError, ListError, pa.ArrowInvalid):
            # If it is unknown whether a picture may be shown, it is not shown.
            return None
        return report if shown else None

    def health(self) -> dict[str, Any]:
        """State of the index and the encoder."""
        version = self.live.current
        encoder = self.encoder
        damaged = [*self.live.damaged, *self._damage.values()]
        problem = self.live.problem or self._other_model(version)
        good = encoder.state == "ready" and problem is None and not damaged
        return {
            "status": "ok" if good else "degraded",
            "index": {
                "name": self.name,
                "version": version.name,
                "samples": version.summary.n,
                "model": public_key(version.summary.model),
                "model_version": version.summary.model_version,
                "problem": problem,
                "damaged": damaged,
            },
            "heads": list(self.heads.problems(version)),
            "encoder": {"state": encoder.state, "problem": encoder.problem or None},
        }

    async def about(self) -> dict[str, Any]:
        """Facts about the service that the page needs."""
        version = self.live.current
        return {
            "name": self.name,
            "samples": version.summary.n,
            "model": public_key(version.summary.model),
            "generated": await self.generated() is not None,
            "thumbnails": self.thumbnails is not None,
            "removal_requests": self.removals is not None,
            "max_image_bytes": self.options.max_image_bytes,
            "max_text": self.options.max_text,
            "heads": await self._in(self._reading, self.heads.shown, version),
        }

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise RequestRefusedError(
                404, "no_index", f"there is no index {name!r:.100}; this service has {self.name}"
            )

    async def _in(
        self, pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(
                pool, lambda: function(*args, **kwargs)
            )
        except (SubsetError, IndexDamagedError) as error:
            # Not the client's fault; the message has paths.
            logger.warning("%s", error)
            root = self._lake.root if self._lake else self._index_dir
            self._damage[str(error)] = str(error).replace(f"{root}/", "")
            raise RequestRefusedError(
                503, "damaged", "the dataset is being changed, or damaged", retry_after_s=30
            ) from error


def _one_core_a_query() -> None:
    """Set up a search thread: one core per query, since queries share the cores."""
    import faiss

    faiss.omp_set_num_threads(1)
