"""Prometheus metrics of one service."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from laion_assets.search.encoder import Encoder
from laion_assets.search.live_index import LiveIndex

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters, histograms and gauges, whose names start with ``laion_assets_search_``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "laion_assets_search"
        self._requests = Histogram(
            f"{prefix}_request_seconds",
            "Time from a request's head to the end of its response",
            ["route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._search = Histogram(
            f"{prefix}_knn_seconds",
            "Time of a query: waiting for a thread, index, metadata, filters and folding",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._encode = Histogram(
            f"{prefix}_encode_seconds",
            "Time of a batch in the CLIP model",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            f"{prefix}_refused", "Requests refused, by reason", ["reason"], registry=self.registry
        )
        self._gone = Counter(
            f"{prefix}_gone",
            "Neighbours left out because the subset no longer holds them",
            registry=self.registry,
        )
        self._samples = Gauge(
            f"{prefix}_index_samples", "Samples in the current index", registry=self.registry
        )
        self._swaps = Gauge(
            f"{prefix}_index_swaps", "Newer indices loaded since the start", registry=self.registry
        )
        self._stuck = Gauge(
            f"{prefix}_index_problem",
            "1 while the newest index cannot be served",
            registry=self.registry,
        )
        self._ready = Gauge(
            f"{prefix}_encoder_ready", "1 while the CLIP model is ready", registry=self.registry
        )

    def watch(self, live: LiveIndex, encoder: Encoder) -> None:
        """Have the gauges follow an index and an encoder."""
        self._samples.set_function(lambda: live.current.summary.n)
        self._swaps.set_function(lambda: live.swaps)
        self._stuck.set_function(lambda: live.problem is not None)
        self._ready.set_function(lambda: encoder.state == "ready")

    def requested(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).observe(seconds)

    def searched(self, seconds: float, gone: int) -> None:
        self._search.observe(seconds)
        self._gone.inc(gone)

    def encoded(self, kind: str, seconds: float) -> None:
        self._encode.labels(kind).observe(seconds)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
