"""What the models are worth: likelihoods, and CLIP's word on samples, real images and controls."""

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
from laion_assets.progress import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

OVERVIEW_BEST = 6
"""Best samples of a caption in the overview."""
REAL_EACH = 4
"""Most real images of a caption that are looked at."""


@dataclass(frozen=True)
class Run:
    """A transformer's training: ``pairs`` were trained on; the losses are in nats a code."""

    name: str
    pairs: int
    curve: list[Point]
    held_out: float
    held_out_other_captions: float
    """The loss of the same images, each with another held-out pair's caption."""

    @property
    def gain(self) -> float:
        """Nats a code that the right caption saves."""
        return self.held_out_other_captions - self.held_out


@dataclass(frozen=True)
class Drawn:
    """The samples of a caption: CLIP's cosines with it, in the order they were drawn, and the
    pictures of those that are looked at."""

    caption: str
    cosines: NDArray[np.float32]
    rows: NDArray[np.int64]
    """The numbers of the samples whose pictures are kept, ascending."""
    pixels: NDArray[np.uint8]
    """These, (rows, size, size, 3)."""

    @classmethod
    def of(
        cls, caption: str, pixels: NDArray[np.uint8], cosines: NDArray[np.float32], n: int
    ) -> Drawn:
        """Of all samples, keeping the pictures of the ``n`` best and the ``n`` worst."""
        order = ranked(cosines)
        rows = np.unique(np.concatenate([order[:n], order[::-1][:n]]))
        return cls(caption, cosines, rows, pixels[rows])

    def picture(self, row: int) -> NDArray[np.uint8]:
        """Of a sample that is kept."""
        found: NDArray[np.uint8] = self.pixels[self.rows.tolist().index(row)]
        return found

    def best(self, n: int) -> NDArray[np.int64]:
        return ranked(self.cosines)[:n]

    def worst(self, n: int) -> NDArray[np.int64]:
        return ranked(self.cosines)[::-1][:n]


@dataclass(frozen=True)
class Real:
    """Held-out images of a caption, and of another one, and CLIP's cosines with the caption."""

    caption: str
    numbers: NDArray[np.int64]
    """The pairs whose images they are, (n,)."""
    pixels: NDArray[np.uint8]
    """At the modelled size, (n, size, size, 3)."""
    stored: float
    """Mean cosine of the images as they are stored."""
    at_size: float
    """Of the images at the modelled size."""
    through_codes: float
    """Of what the autoencoder makes of them: what a perfect transformer would draw."""
    other_caption: float
    """Of as many images of other captions, at the modelled size: what chance gives."""


@dataclass(frozen=True)
class Mean:
    """Over captions: the mean, and its standard error."""

    mean: float
    error: float | None
    """None of a single caption."""
    captions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        array = np.array(values, np.float64)
        error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else None
        return cls(float(array.mean()), error, len(array))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


@dataclass(frozen=True)
class Evaluation:
    """All that is known of a finished demo."""

    options: GenerationOptions
    training_pairs: int
    runs: list[Run]
    autoencoder: list[Point]
    drawn: Mapping[str, list[Drawn]]
    """By the name of the run that drew."""
    real: list[Real]
    trained_on: frozenset[str] = frozenset()
    """Those of the captions drawn that the training pairs have, too: a person's, never one taken
    from the held-out pairs."""

    @property
    def captions(self) -> list[str]:
        """Those that were drawn, in order."""
        return [one.caption for one in next(iter(self.drawn.values()))]

    def rows(self) -> list[tuple[str, Mean]]:
        """Mean similarities with the captions, the ceiling first.

        Each is over the captions that held-out images have, so that the rows may be compared.
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
        """The numbers worth a line of metadata."""
        lines: dict[str, Any] = {"training_pairs": self.training_pairs}
        for run in self.runs:
            lines[f"held_out_nats/{run.name}"] = round(run.held_out, 4)
            lines[f"caption_gain_nats/{run.name}"] = round(run.gain, 4)
        for what, mean in self.rows():
            lines[f"similarity/{what}"] = round(mean.mean, 4)
        return lines

    def similarity_table(self) -> list[dict[str, Any]]:
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
    """The codes of ``options.samples`` pictures of a caption; ``number`` varies the seed."""
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

    Codes and cosines are kept in ``kept``, by caption; those that are there are not drawn again.
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
        # At the paper's size all pictures of all captions would be gigabytes.
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
    """What held-out images say of those captions that have any."""
    texts = pairs.texts[pairs.held_out]
    rng = np.random.default_rng([options.seed, 5])
    found = []
    for caption in captions:
        same = texts == pairs.text(caption)
        if not same.any() or same.all():
            continue
        here = pairs.held_out[same][:REAL_EACH]
        others = rng.permutation(pairs.held_out[~same])[:REAL_EACH]
        pixels = images.pixels(here)
        seen: dict[str, Iterable[NDArray[np.uint8]]] = {
            "stored": [images.stored(int(number)) for number in here],
            "at_size": pixels,
            "through_codes": autoencoder.decode(
                vq, autoencoder.encode(vq, pixels), options.vq_batch
            ),
            "other_caption": images.pixels(others),
        }
        means = {
            what: float(similarities(clip, some, caption).mean()) for what, some in seen.items()
        }
        found.append(Real(caption, here, pixels, **means))
    return found
