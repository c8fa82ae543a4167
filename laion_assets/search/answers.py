"""Results as the answers have them: clip-retrieval's columns, and ours."""

from __future__ import annotations

from typing import Any

from laion_assets.knn.samples import Sample
from laion_assets.search.find import Result


def metadata(sample: Sample) -> dict[str, Any]:
    """Metadata in clip-retrieval's columns (url, caption, NSFW) and in ours."""
    return {
        "url": sample.url,
        "caption": sample.text,
        "NSFW": sample.nsfw,
        "width": sample.width,
        "height": sample.height,
        "license": sample.license,
        "language": sample.language,
        "page_url": sample.page_url,
        "image_text_similarity": sample.similarity,
        "sha256": sample.sha256,
        "crawl": sample.ref.crawl,
        "segment": sample.ref.segment,
        "sample": str(sample.ref),
        **sample.scores,
    }


def shown(result: Result) -> dict[str, Any]:
    """A result for the page."""
    return {
        **metadata(result.located.sample),
        "score": result.score,
        "duplicates": result.duplicates,
    }
