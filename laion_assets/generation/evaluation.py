"""Evaluation of the models: likelihoods, and CLIP's scores of samples, real images and controls."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laion_assets.files import atomic_path
from laion_assets.generation import autoencoder, transformer
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.pairs import Images, Pairs
from laion_assets.generation.ranking import ranked, similarities
from laion_assets.generation.trainer import Point
from laion_assets.generation.vocabulary import Vocabulary
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

OVERVIEW_BEST = 6
"""Number of a caption's best samples in the overview."""
REAL_EACH = 4
"""Largest number of real images that are scored per caption."""


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

    @classmethod
    def of(
        cls, caption: str, pixels: NDArray[np.uint8], cosines: NDArray[np.float32], n: int
    ) -> Drawn:
        """Take all samples' pictures, and keep those of the ``n`` best and the ``n`` worst."""
        order = ranked(cosines)
        rows = np.unique(np.concatenate([order[:n], order[::-1][:n]]))
        return cls(caption, cosines, rows, pixels[rows])

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

    def headline(self) -> dict[str, Any]:
        """The most important numbers, each for one line of metadata."""
        lines: dict[str, Any] = {"training_pairs": self.training_pairs}
        for run in self.runs:
            lines[f"held_out_nats/{run.name}"] = round(run.held_out, 4)
            lines[f"caption_gain_nats/{run.name}"] = round(run.gain, 4)
        for what, mean in self.rows():
            lines[f"similarity/{what}"] = round(mean.mean, 4)
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


def draw(
    gpt: Any, vocabulary: Vocabulary, caption: str, options: GenerationOptions, number: int = 0
) -> autoencoder.Codes:
    """Draw the codes of ``options.samples`` pictures of a caption; ``number`` varies the seed."""
    text = np.repeat(vocabulary.encode([caption], options.text_tokens), options.samples, axis=0)
    return transformer.sample(gpt, text, options, seed=options.seed * 10_007 + number)


def draw_and_score(
    gpt: Any,
    vq: Any,
    clip: ClipModel,
    vocabulary: Vocabulary,
    captions: Sequence[str],
    options: GenerationOptions,
    kept: Path,
    name: str,
) -> list[Drawn]:
    """Draw and rank ``options.samples`` pictures of each caption.

    Codes and cosines are saved in the folder ``kept``, by caption; saved ones are not drawn again.
    """
    done = []
    progress = Progress(f"{name}: samples", "captions", len(captions), logger)
    for number, caption in enumerate(captions):
        path = kept / f"{name.replace(' ', '-')}-{number:04d}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                codes, cosines = file["codes"], file["cosines"]
            pixels = autoencoder.decode(vq, codes, options.vq_batch)
        else:
            codes = draw(gpt, vocabulary, caption, options, number)
            pixels = autoencoder.decode(vq, codes, options.vq_batch)
            cosines = similarities(clip, pixels, caption)
            with atomic_path(path) as beside:
                np.savez(beside, codes=codes, cosines=cosines)
        # At the paper's size, all pictures of all captions would take gigabytes.
        done.append(Drawn.of(caption, pixels, cosines, max(options.best, OVERVIEW_BEST)))
        progress.advance()
    return done


def real_images(
    pairs: Pairs,
    images: Images,
    vq: Any,
    clip: ClipModel,
    captions: Sequence[str],
    options: GenerationOptions,
) -> list[Real]:
    """Score held-out images of each caption that has any, as a ceiling and a chance level."""
    texts = pairs.texts[pairs.held_out]
    rng = np.random.default_rng([options.seed, 5])
    found = []
    for caption in captions:
        same = texts == pairs.text(caption)
        if not same.any() or same.all():
            continue
        own = pairs.held_out[same][:REAL_EACH]
        others = rng.permutation(pairs.held_out[~same])[:REAL_EACH]
        pixels = images.pixels(own)
        seen: dict[str, Iterable[NDArray[np.uint8]]] = {
            "stored": [images.stored(int(number)) for number in own],
            "at_size": pixels,
            "through_codes": autoencoder.decode(
                vq, autoencoder.encode(vq, pixels), options.vq_batch
            ),
            "other_caption": images.pixels(others),
        }
        means = {
            what: float(similarities(clip, some, caption).mean()) for what, some in seen.items()
        }
        found.append(Real(caption, own, pixels, **means))
    return found
