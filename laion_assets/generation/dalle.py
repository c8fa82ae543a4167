"""The whole demo: train, draw, rank, evaluate. Each phase resumes where a killed one stopped.

A run works in ``.work`` in the output folder. Its results stay there, too, until all are complete,
since the models of two runs do not fit together. ``options.json`` is published last: if it is
present, the other results are present and belong to it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.files import fsync_directory, locked, replace_folder, write_json
from laion_assets.generation import autoencoder, transformer
from laion_assets.generation.evaluation import Drawn, Evaluation, Run
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.pairs import (
    BatchOrder,
    Images,
    Pairs,
    Shard,
    captions_of,
    with_other_captions,
)
from laion_assets.generation.ranking import Judge
from laion_assets.generation.report import GUIDANCE, write_report
from laion_assets.generation.scoring import Studio
from laion_assets.generation.tokens import Tokens, vocabulary_of, write_tokens
from laion_assets.generation.trainer import Point, save_model
from laion_assets.options import versioned
from laion_assets.work import keep_freed_memory

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

ALL: Final = "all pairs"
SHUFFLED: Final = "captions shuffled"
AUTOENCODER: Final = "autoencoder"
TRANSFORMER: Final = "transformer"
VOCABULARY: Final = "vocabulary.json"
OPTIONS: Final = "options.json"
_WORK: Final = ".work"


def make_samples(
    shards: Sequence[Shard],
    out: Path,
    options: GenerationOptions,
    clip: ClipModel,
) -> Evaluation:
    """Train on the shards' pairs, draw samples, and write the results to ``out``.

    These are ``autoencoder/`` and ``transformer/``, as diffusers and transformers save them,
    ``vocabulary.json``, ``evaluation.json``, pictures of the samples, the loss curves,
    ``report.html``, and ``shown.parquet``, which lists the samples whose real pictures are shown.

    Unfinished work in ``out`` is resumed only if the pairs, the options and CLIP are the same;
    otherwise it is discarded. Finished results of an earlier call stay until this one finishes.

    Raises :class:`~laion_assets.generation.pairs.NoPairsError` if too few pairs were kept,
    :class:`~laion_assets.files.LockedError` if another process works in ``out``.
    """
    from laion_assets.clip.model import choose_device
    from laion_assets.clip.precision import choose_precision
    from laion_assets.generation.shown_samples import write_shown

    keep_freed_memory()
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    work = out / _WORK
    pairs = Pairs(shards, options.held_out_share, options.seed)
    logger.info(
        f"{len(pairs.training):,} training pairs, {len(pairs.held_out):,} held out; {device}"
    )
    # These raise if there are too few captions for the controls: before anything is trained.
    plans, held = _plans(pairs, options), _held_out(pairs, options)
    with (
        locked(out / ".lock", lambda: None, timeout_s=0),
        Images(pairs, options.image_size, options.decode_threads) as images,
    ):
        _settle(work, _made_of(pairs, options, clip, device.type, precision))
        result = work / "result"
        if result.exists():
            shutil.rmtree(result)
        model, vq_curve = _autoencoder(pairs, images, options, device, precision, work)
        save_model(model, result / AUTOENCODER)
        vocabulary = vocabulary_of(pairs)
        write_json(result / VOCABULARY, {"clip_tokens": vocabulary.words})
        tokens = write_tokens(work / "tokens", pairs, images, model, vocabulary, options)
        runs, trained = [], {}
        for plan in plans:
            gpt = transformer.build(options, len(vocabulary)).to(device)
            runs.append(_trained(plan, held, gpt, tokens, options, precision, work))
            if plan.name in (ALL, SHUFFLED):
                trained[plan.name] = gpt
        save_model(trained[ALL], result / TRANSFORMER)
        captions = _captions(pairs, options)
        studio = Studio(model, vocabulary, Judge(clip), captions, work / "drawn")
        evaluation = Evaluation(
            options,
            len(pairs.training),
            runs,
            vq_curve,
            {name: studio.draw(name, gpt, options) for name, gpt in trained.items()},
            studio.real(pairs, images, options),
            frozenset(filter(pairs.trains_on, captions)),
            _compared(studio, trained[ALL], options),
        )
        write_json(result / "evaluation.json", evaluation.to_json())
        write_shown(result, pairs, evaluation.real)
        write_report(result, evaluation)
        write_json(result / OPTIONS, options.model_dump(mode="json"))
        _publish(result, out)
        shutil.rmtree(work)
    return evaluation


def _publish(result: Path, out: Path) -> None:
    """Replace an earlier run's results by these.

    Killed midway, ``out`` has no ``options.json``, and thus no models to draw with, until the same
    call is repeated.
    """
    for name in (OPTIONS, GUIDANCE):
        # Not every run compares scales of guidance.
        (out / name).unlink(missing_ok=True)
    for new in sorted(result.iterdir()):
        if new.is_dir():
            replace_folder(new, out / new.name)
        elif new.name != OPTIONS:
            new.replace(out / new.name)
    (result / OPTIONS).replace(out / OPTIONS)
    fsync_directory(out)


def _made_of(
    pairs: Pairs, options: GenerationOptions, clip: ClipModel, device: str, precision: str
) -> dict[str, Any]:
    """Inputs that unfinished work must have been started with to be resumed."""
    weights = options.vq_weights
    return {
        "pairs": pairs.digest,
        "clip": clip.version,
        "options": versioned(options),
        # Not the path: the weights under it may have changed.
        "vq_weights": weights and autoencoder.weights_digest(autoencoder.weights_folder(weights)),
        # What `auto` chose: half a training in another precision is another training.
        "device": device,
        "precision": precision,
    }


def _settle(work: Path, made_of: Mapping[str, Any]) -> None:
    """Empty the work folder unless it records that it was started with ``made_of``."""
    marker = work / "made_of.json"
    if work.exists() and not (marker.exists() and json.loads(marker.read_bytes()) == made_of):
        shutil.rmtree(work)
    write_json(marker, made_of)


def _autoencoder(
    pairs: Pairs,
    images: Images,
    options: GenerationOptions,
    device: Any,
    precision: str,
    work: Path,
) -> tuple[Any, list[Point]]:
    """Train the autoencoder, or load the given weights; return the model and its curve."""
    if options.vq_weights:
        model = autoencoder.load(autoencoder.weights_folder(options.vq_weights), options)
        return model.to(device), []
    model = autoencoder.build(options).to(device)
    order = BatchOrder(
        len(pairs.training), options.vq_batch, lambda epoch: pairs.epoch(epoch, options.seed)
    )
    held = pairs.held_out[: options.evaluate_pairs]
    size = options.vq_batch
    held_batches = [held[start : start + size] for start in range(0, len(held), size)]

    curve = autoencoder.train(
        model,
        images.in_turn(order),
        options,
        precision,
        work / "autoencoder.safetensors",
        held_out=lambda: autoencoder.held_out_loss(model, images.batches(held_batches)),
    )
    return model, curve


@dataclass(frozen=True)
class _Plan:
    """Pairs that one transformer is trained on, or evaluated with."""

    name: str
    images: NDArray[np.int64]
    """Numbers of the pairs whose images are used, (n,)."""
    captions: NDArray[np.int64]
    """Numbers of the pairs whose captions go with these images, (n,)."""


def _plans(pairs: Pairs, options: GenerationOptions) -> list[_Plan]:
    """Plan the trainings: nested subsets of the pairs, all pairs, and the control."""
    rng = np.random.default_rng([options.seed, 1])
    order = rng.permutation(pairs.training)
    plans = []
    for share in sorted(options.subset_shares):
        some = order[: max(1, round(share * len(order)))]
        plans.append(_Plan(f"{100 * share:g}% of the pairs", some, some))
    plans.append(_Plan(ALL, order, order))
    if options.control:
        plans.append(_Plan(SHUFFLED, order, with_other_captions(pairs, order, options.seed)))
    return plans


def _held_out(pairs: Pairs, options: GenerationOptions) -> _Plan:
    """Pick the held-out pairs that losses are measured on, and other captions for their control."""
    order = np.random.default_rng([options.seed, 3]).permutation(pairs.held_out)
    others = with_other_captions(pairs, order, options.seed)
    return _Plan("held out", order[: options.evaluate_pairs], others[: options.evaluate_pairs])


def _trained(
    plan: _Plan,
    held: _Plan,
    gpt: Any,
    tokens: Tokens,
    options: GenerationOptions,
    precision: str,
    work: Path,
) -> Run:
    """Train ``gpt`` in place; return its losses on the pairs ``held`` out and on their control."""
    order = BatchOrder(
        len(plan.images),
        options.batch,
        lambda epoch: np.random.default_rng([options.seed, 2, epoch]).permutation(len(plan.images)),
    )

    def batch_of(number: int) -> transformer.Batch:
        rows = order(number)
        return tokens.batch(plan.captions[rows], plan.images[rows])

    def loss(captions: NDArray[np.int64]) -> float:
        batch = tokens.batch(captions, held.images)
        return transformer.held_out_loss(gpt, *batch, options.codebook, precision, options.batch)

    name = plan.name.replace(" ", "-").replace("%", "")
    curve = transformer.train(
        plan.name,
        gpt,
        batch_of,
        options,
        precision,
        work / f"transformer-{name}.safetensors",
        held_out=lambda: loss(held.images),
    )
    last = curve[-1].held_out
    assert last is not None
    run = Run(plan.name, len(plan.images), curve, last, loss(held.captions))
    logger.info(
        f"{run.name}: {run.held_out:.3f} nats per code, {run.gain:+.3f} by the right caption"
    )
    return run


def _compared(studio: Studio, gpt: Any, options: GenerationOptions) -> dict[float, list[Drawn]]:
    """Draw a few samples of each caption with each scale of guidance that is compared."""
    few = {"samples": options.guidance_samples, "best": options.guidance_samples}
    return {
        scale: studio.draw(
            f"guidance {scale!r}", gpt, options.model_copy(update={"guidance": scale, **few})
        )
        for scale in options.guidance_compared
    }


def _captions(pairs: Pairs, options: GenerationOptions) -> list[str]:
    """List the given captions, followed by distinct held-out ones in a random order."""
    rng = np.random.default_rng([options.seed, 4])
    picked = rng.permutation(pairs.held_out)
    texts = dict.fromkeys(options.captions)
    wanted = len(texts) + options.held_out_captions
    for start in range(0, len(picked), 256):
        texts |= dict.fromkeys(captions_of(pairs, picked[start : start + 256]))
        if len(texts) >= wanted:
            break
    return list(texts)[:wanted]
