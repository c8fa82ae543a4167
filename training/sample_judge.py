"""Scoring of the sample crawl's pairs by the pipeline's own code, with the shipped CLIP."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laion_assets.download.images import Checksums
from laion_assets.files import atomic_path
from laion_assets.safety.minors import names_minors
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.safety.tags import tag
from laion_assets.sample_crawl.plan import KEPT

MARGIN = 0.03
RANK_MARGIN = 0.015
SCORING_BATCH = 256
SAFETY = {
    ("NSFW", KEPT): "safety_nsfw_kept",
    ("UNSURE", KEPT): "safety_unsure_kept",
    ("NSFW", "unsafe_minor_text"): "safety_minor_text",
    ("UNSURE", "unsafe_minor_text"): "safety_minor_text",
    ("NSFW", "unsafe_underage"): "safety_underage",
    ("UNSURE", "unsafe_underage"): "safety_underage",
    ("NSFW", "unsafe_animal"): "safety_animal",
    ("UNSURE", "unsafe_animal"): "safety_animal",
}
INNOCENT = "safety_innocent_minor_text"


@dataclass
class Candidate:
    """A picture and a text; scoring decides what becomes of the pair."""

    group: str
    file: str
    text: str
    concept: str = ""
    reason: str = KEPT
    similarity: float | None = None
    nsfw: str | None = None
    close: bool = False
    """Whether rounding could change a decision on it; such a pair must not go into the crawl."""


class Judge:
    """Scoring of pairs by the pipeline's own code: stored as in a shard, then embedded by the CLIP.

    Embeddings are cached by model and picture, so that a change of texts is quick.
    """

    def __init__(self, content: dict[str, bytes], cache: Path) -> None:
        from laion_assets.clip.model import load_clip
        from laion_assets.clip.options import ClipOptions
        from laion_assets.clip.thresholds import threshold_for
        from laion_assets.download.images import ImageMaker
        from laion_assets.download.options import DownloadOptions

        options = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny")
        self.model = load_clip(options)
        self.threshold = threshold_for(self.model.key)
        self.categories = category_embeddings(load_prompts("sample"), self.model)
        self.maker = ImageMaker(DownloadOptions())
        self.content = content
        self.cache = cache / f"vectors-{self.model.version}.npz"
        self.images: dict[str, NDArray[np.float32]] = {}
        if self.cache.is_file():
            self.images = dict(np.load(self.cache))

    def image_vectors(self, files: list[str]) -> NDArray[np.float32]:
        """Embed the pictures as the pipeline stores them: (n, dim)."""
        keys = {file: Checksums.of(self.content[file]).sha256 for file in set(files)}
        missing = sorted(file for file, key in keys.items() if key not in self.images)
        for start in range(0, len(missing), SCORING_BATCH):
            batch = missing[start : start + SCORING_BATCH]
            made = [self.maker.make(self.content[file]) for file in batch]
            stored = [Image.open(io.BytesIO(image.encoded)) for image in made]
            vectors = self.model.encode_images(stored)
            self.images |= dict(zip((keys[file] for file in batch), vectors, strict=True))
            with atomic_path(self.cache) as beside:
                np.savez(beside, **self.images)  # type: ignore[arg-type]
            print(f"embedded {start + len(batch)} of {len(missing)}", flush=True)
        return np.stack([self.images[keys[file]] for file in files])

    def score(self, candidates: list[Candidate]) -> None:
        """Set each candidate's similarity, tag and reason, and whether a decision is close."""
        images = self.image_vectors([one.file for one in candidates])
        texts = self.model.encode_texts([one.text for one in candidates])
        similarities = (images * texts).sum(axis=1)
        tags = tag(images, self.categories)
        minors = names_minors([one.text for one in candidates], self.categories.words)
        close = self._close_ranks(images)
        for at, one in enumerate(candidates):
            similarity = float(similarities[at])
            one.similarity = round(similarity, 4)
            one.nsfw = str(tags.nsfw[at])
            one.close = abs(similarity - self.threshold) < MARGIN or bool(close[at])
            one.reason = KEPT
            if similarity < self.threshold:
                one.reason = "below_threshold"
            elif one.nsfw != "UNLIKELY":
                if minors[at]:
                    one.reason = "unsafe_minor_text"
                elif tags.underage_ranked[at]:
                    one.reason = "unsafe_underage"
                elif tags.animal_ranked[at]:
                    one.reason = "unsafe_animal"
            if one.group == "flagged":
                one.group = SAFETY.get((one.nsfw, one.reason), "flagged")
            elif one.nsfw != "UNLIKELY":
                one.close = True
            elif one.group == "matched" and one.reason == KEPT and minors[at]:
                one.group = INNOCENT

    def _close_ranks(self, images: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether rounding could change which categories are first or second: bool (n,)."""
        close = np.zeros(len(images), dtype=np.bool_)
        for ranked, pairs in (
            (self.categories.nsfw, ((0, 1), (1, 0))),
            (self.categories.underage, ((0, 1),)),
            (self.categories.animals, ((0, 0),)),
        ):
            scores = images @ ranked.vectors.T
            flagged = -np.sort(-scores[:, ranked.flags], axis=1)
            others = -np.sort(-scores[:, ~ranked.flags], axis=1)
            for flagged_place, other_place in pairs:
                if flagged_place < flagged.shape[1]:
                    gap = flagged[:, flagged_place] - others[:, other_place]
                    if ranked is self.categories.nsfw:
                        close |= np.abs(gap) < RANK_MARGIN
                    else:
                        close |= (np.abs(gap) < RANK_MARGIN) & self._flagged(images)
        return close

    def _flagged(self, images: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(tag(images, self.categories).nsfw != "UNLIKELY")
