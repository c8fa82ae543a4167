"""Results of a demo: likelihoods, and the scores of samples, real images and controls.

What does not belong here: how samples are drawn and scored (``scoring``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.ranking import Scores, ranked
from laion_assets.generation.subjects import JUDGED, Shares
from laion_assets.generation.trainer import Point

OVERVIEW_BEST = 6
"""Number of a caption's best samples in the overview."""


@dataclass(frozen=True)
class Run:
    """A transformer's training on ``pairs`` pairs; losses are in nats per code."""

    name: str
    pairs: int
    curve: list[Point]
    held_out: float
    held_out_other_captions: float
    """Loss of the same images, each with another held-out pair's caption."""

    @property
    def gain(self) -> float:
        """Nats per code that the right caption saves."""
        return self.held_out_other_captions - self.held_out


@dataclass(frozen=True)
class Drawn:
    """The samples of a caption, and the pictures of those that are shown."""

    caption: str
    cosines: NDArray[np.float32]
    """CLIP's cosines of the samples with the caption, in the order they were drawn, (samples,)."""
    rows: NDArray[np.int64]
    """Numbers of the samples whose pictures are kept, ascending."""
    pixels: NDArray[np.uint8]
    """The kept pictures, (rows, size, size, 3)."""
    verdicts: NDArray[np.bool_] | None = None
    """The samples' verdicts, (samples, 3), as :class:`Scores` has them."""

    @classmethod
    def of(cls, caption: str, pixels: NDArray[np.uint8], scores: Scores, n: int) -> Drawn:
        """Take all samples' pictures, and keep those of the ``n`` best and the ``n`` worst."""
        order = ranked(scores.cosines)
        rows = np.unique(np.concatenate([order[:n], order[::-1][:n]]))
        return cls(caption, scores.cosines, rows, pixels[rows], scores.verdicts)

    def picture(self, row: int) -> NDArray[np.uint8]:
        """Picture of a sample by its number, uint8 (size, size, 3).

        Raises ``ValueError`` if it was not kept.
        """
        found: NDArray[np.uint8] = self.pixels[self.rows.tolist().index(row)]
        return found

    def best(self, n: int) -> NDArray[np.int64]:
        """Numbers of the ``n`` best samples, the best first."""
        return ranked(self.cosines)[:n]

    def worst(self, n: int) -> NDArray[np.int64]:
        """Numbers of the ``n`` worst samples, the worst first."""
        return ranked(self.cosines)[::-1][:n]


@dataclass(frozen=True)
class Real:
    """Held-out images of a caption, and mean cosines of these and other images with it."""

    caption: str
    numbers: NDArray[np.int64]
    """Numbers of the pairs whose images these are, (n,)."""
    pixels: NDArray[np.uint8]
    """The images at the modelled size, (n, size, size, 3)."""
    stored: float
    """Mean cosine of the images as they are stored."""
    at_size: float
    """Mean cosine of the images at the modelled size."""
    through_codes: float
    """Mean cosine of the autoencoder's reconstructions: what a perfect transformer would draw."""
    other_caption: float
    """Mean cosine of as many images of other captions, at the modelled size: chance level."""
    verdicts: Mapping[str, NDArray[np.bool_] | None] = field(default_factory=dict)
    """Verdicts, (n, 3) each, of the images ``stored`` and ``through_codes``."""


@dataclass(frozen=True)
class Mean:
    """A mean over captions, and its standard error."""

    mean: float
    error: float | None
    """None for a single caption."""
    captions: int
    """Number of captions."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        array = np.array(values, np.float64)
        error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else None
        return cls(float(array.mean()), error, len(array))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


@dataclass(frozen=True)
class Evaluation:
    """All results of a finished demo."""

    options: GenerationOptions
    training_pairs: int
    runs: list[Run]
    autoencoder: list[Point]
    drawn: Mapping[str, list[Drawn]]
    """Drawn samples by the name of the run whose model drew them."""
    real: list[Real]
    trained_on: frozenset[str] = frozenset()
    """The drawn captions that are also training captions. Only a caption given by a person can be
    one, never one taken from the held-out pairs."""
    guidance: Mapping[float, list[Drawn]] = field(default_factory=dict)
    """A few samples of each caption, all kept, by the scale of guidance they were drawn with."""

    @property
    def captions(self) -> list[str]:
        """The drawn captions, in order."""
        return [one.caption for one in next(iter(self.drawn.values()))]

    def rows(self) -> list[tuple[str, Mean]]:
        """Mean similarities of pictures with their captions; real images, the ceiling, come first.

        Each row is over the captions that held-out images have, so that rows can be compared.
        """
        common = {one.caption for one in self.real}
        real = [
            ("real images, as stored", [one.stored for one in self.real]),
            (f"real images, {self.options.image_size} pixels", [one.at_size for one in self.real]),
            ("real images, through the codes", [one.through_codes for one in self.real]),
        ]
        best, samples = self.options.best, self.options.samples
        made = []
        for name, all_drawn in self.drawn.items():
            drawn = [one for one in all_drawn if one.caption in common]
            top = [float(one.cosines[one.best(best)].mean()) for one in drawn]
            made.append((f"{name}: best {best} of {samples}", top))
            made.append((f"{name}: all samples", [float(one.cosines.mean()) for one in drawn]))
        chance = [("real images of other captions", [one.other_caption for one in self.real])]
        return [(what, Mean.of(values)) for what, values in real + made + chance if values]

    def judged(self) -> list[tuple[str, Shares]]:
        """Shares of pictures with their caption's background, colour and thing.

        As :meth:`rows`, over the captions that held-out images have; empty unless these are the
        drawn crawl's.
        """
        common = {one.caption for one in self.real}
        stored, through = (
            [one.verdicts.get(name) for one in self.real] for name in ("stored", "through_codes")
        )
        found = [("real images, as stored", stored), ("real images, through the codes", through)]
        best, samples = self.options.best, self.options.samples
        for name, all_drawn in self.drawn.items():
            drawn = [one for one in all_drawn if one.caption in common]
            top = [None if one.verdicts is None else one.verdicts[one.best(best)] for one in drawn]
            found.append((f"{name}: best {best} of {samples}", top))
            found.append((f"{name}: all samples", [one.verdicts for one in drawn]))
        return [(what, shares) for what, some in found if (shares := _shares(some))]

    def guidance_table(self) -> list[dict[str, Any]]:
        """Similarity and shares by scale of guidance, as records."""
        common = {one.caption for one in self.real}
        records = []
        for scale, all_drawn in self.guidance.items():
            drawn = [one for one in all_drawn if one.caption in common]
            if not drawn:
                continue
            mean = Mean.of([float(one.cosines.mean()) for one in drawn])
            shares = _shares([one.verdicts for one in drawn])
            records.append(
                {
                    "guidance": scale,
                    "similarity": round(mean.mean, 4),
                    "samples": sum(len(one.cosines) for one in drawn),
                    **({} if shares is None else _rounded(shares)),
                }
            )
        return records

    def judged_table(self) -> list[dict[str, Any]]:
        """The rows of :meth:`judged` as records."""
        return [
            {"pictures": what, **_rounded(shares), "number": shares.pictures}
            for what, shares in self.judged()
        ]

    def headline(self) -> dict[str, Any]:
        """The most important numbers, each for one line of metadata."""
        lines: dict[str, Any] = {"training_pairs": self.training_pairs}
        for run in self.runs:
            lines[f"held_out_nats/{run.name}"] = round(run.held_out, 4)
            lines[f"caption_gain_nats/{run.name}"] = round(run.gain, 4)
        for what, mean in self.rows():
            lines[f"similarity/{what}"] = round(mean.mean, 4)
        for what, shares in self.judged():
            for name, share in _rounded(shares).items():
                lines[f"{name} right/{what}"] = share
        return lines

    def similarity_table(self) -> list[dict[str, Any]]:
        """The rows of :meth:`rows` as records."""
        return [
            {
                "pictures": what,
                "similarity": round(mean.mean, 4),
                "standard_error": "" if mean.error is None else round(mean.error, 4),
                "captions": mean.captions,
            }
            for what, mean in self.rows()
        ]

    def runs_table(self) -> list[dict[str, Any]]:
        """The runs' losses as records."""
        return [
            {
                "trained on": run.name,
                "pairs": run.pairs,
                "held-out nats a code": round(run.held_out, 4),
                "with another caption": round(run.held_out_other_captions, 4),
                "saved by the caption": round(run.gain, 4),
            }
            for run in self.runs
        ]

    def to_json(self) -> dict[str, Any]:
        """Content of ``evaluation.json``, a published format."""
        return {
            "training_pairs": self.training_pairs,
            "autoencoder": [asdict(point) for point in self.autoencoder],
            "runs": [{**asdict(run), "gain": run.gain} for run in self.runs],
            "similarity": {what: asdict(mean) for what, mean in self.rows()},
            "judged": {what: asdict(shares) for what, shares in self.judged()},
            "guidance": self.guidance_table(),
            "captions": [
                {
                    "caption": one.caption,
                    "run": name,
                    "trained_on": one.caption in self.trained_on,
                    "best": [round(float(value), 4) for value in np.sort(one.cosines)[::-1]][
                        : self.options.best
                    ],
                    "mean": round(float(one.cosines.mean()), 4),
                    "worst": round(float(one.cosines.min()), 4),
                }
                for name, drawn in self.drawn.items()
                for one in drawn
            ],
        }


def _shares(verdicts: Iterable[NDArray[np.bool_] | None]) -> Shares | None:
    """Shares over the captions that can be judged; None if there are none."""
    some = [one for one in verdicts if one is not None]
    return Shares.of(np.concatenate(some)) if some else None


def _rounded(shares: Shares) -> dict[str, float]:
    return {name: round(getattr(shares, name), 4) for name in JUDGED}
