"""The comparison: an arm for each recipe and two controls, the same seeds for all, and intervals.

All arms train on as many pairs for as many steps, from the same first weights. What differs is
which pairs they are. `random` draws from all scored pairs. `shuffled` has the pairs of `random`
with their captions shuffled; it must find no more than chance does.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.clip.model import Tokenizer
from laion_assets.comparison.options import ComparisonOptions
from laion_assets.comparison.pool import Pool, Rules, TooFewPairsError
from laion_assets.comparison.result import (
    ALL,
    CONTROLS,
    MATCHING,
    MEASURES,
    RANDOM,
    SHUFFLED,
    SUMMARY,
    ZERO_SHOT,
    Arm,
    Between,
    Comparison,
    HeldOut,
    Interval,
    Measured,
    ZeroShot,
)
from laion_assets.comparison.training import Captions, TextModel, captions_of, device_of
from laion_assets.comparison.zero_shot import Labelled, labelled
from laion_assets.options import versioned
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Hits = NDArray[np.float32]
"""Whether each pair was found: (seeds, pairs, measures)."""

LEAST_HELD_OUT: Final = 50
"""Fewest held-out pairs that anything is measured on."""
_NEAREST: Final = 10
_RESAMPLES: Final = 2_000
_CONFIDENCE: Final = 0.95


def compare(
    pool: Pool,
    rules: Sequence[Rules],
    matching: float,
    options: ComparisonOptions,
    tokenize: Tokenizer,
    model: str,
) -> Comparison:
    """Train all arms, measure them, and say which recipe is the better one.

    The same pool, options and machine give the same result.

    Args:
        matching: the lowest similarity of the held-out pairs that count as matching.
        model: name of the model that the vectors are of, for people.

    Raises:
        TooFewPairsError: before anything is trained.
        NotFiniteError: if a model does not learn.
    """
    to_train = {one.recipe.title: pool.rows_to_train(one) for one in rules}
    samples = _samples(to_train, options)
    to_train |= dict.fromkeys(CONTROLS, np.flatnonzero(~pool.held_out))
    to_search = {
        ALL: pool.rows_to_search(None, options.held_out),
        MATCHING: pool.rows_to_search(matching, options.held_out),
    }
    for name, rows in to_search.items():
        if len(rows) < LEAST_HELD_OUT:
            raise TooFewPairsError(
                f"only {len(rows):,} held-out pairs are left to measure on ({name}), and"
                f" {LEAST_HELD_OUT} are needed: compare when the lake has more pairs, or raise"
                f" [comparison] held_out_share (now {options.held_out_share:g})"
            )
    to_classify = None
    if options.classes:
        rows = to_search[MATCHING]
        texts = pool.texts.take(pa.array(rows)).to_pylist()
        to_classify = labelled(rows, texts, options.classes)
    drawn = _drawn(to_train, samples, options.seeds)
    trained = np.concatenate([draw.images for draw in drawn])
    captions = _captions(pool, trained, to_search, to_classify, tokenize)
    hits = _trained(pool, captions, drawn, to_search, to_classify, options)
    return _result(hits, to_train, to_search, to_classify, samples, matching, options, model)


def _samples(to_train: Mapping[str, Rows], options: ComparisonOptions) -> int:
    """How many pairs each arm trains on. Raises :class:`TooFewPairsError`."""
    for title, rows in to_train.items():
        if len(rows) < options.least:
            raise TooFewPairsError(
                f"the recipe {title} leaves {len(rows):,} pairs to train on, fewer than"
                f" [comparison] least = {options.least:,}: compare when the lake has more pairs,"
                " raise `pool` if the lake is larger than that, or lower `least`"
            )
    return min(options.samples, *(len(rows) for rows in to_train.values()))


class _Draw(NamedTuple):
    """What an arm trains on for one seed, as rows of the pool, (samples,)."""

    seed: int
    arm: str
    images: Rows
    texts: Rows


def _drawn(to_train: Mapping[str, Rows], samples: int, seeds: int) -> list[_Draw]:
    found = []
    for seed in range(seeds):
        for arm, rows in to_train.items():
            # The same of all rows for both controls, which differ in the captions alone.
            images = np.random.default_rng([seed, 1]).choice(rows, samples, replace=False)
            texts = images
            if arm == SHUFFLED:
                texts = np.random.default_rng([seed, 2]).permutation(images)
            found.append(_Draw(seed, arm, images, texts))
    return found


def _captions(
    pool: Pool,
    trained: Rows,
    to_search: Mapping[str, Rows],
    to_classify: Labelled | None,
    tokenize: Tokenizer,
) -> Captions:
    """The pool's captions and, in the rows behind them, the names of the classes."""
    searched, texts = [*to_search.values()], pool.texts
    if to_classify:
        searched.append(_names(pool, to_classify))
        names = pa.array(to_classify.classes, texts.type)
        texts = pa.chunked_array([*texts.chunks, names])
    return captions_of(texts, trained, np.concatenate(searched), tokenize)


def _names(pool: Pool, to_classify: Labelled) -> Rows:
    return len(pool) + np.arange(len(to_classify.classes))


def _trained(
    pool: Pool,
    captions: Captions,
    drawn: Sequence[_Draw],
    to_search: Mapping[str, Rows],
    to_classify: Labelled | None,
    options: ComparisonOptions,
) -> dict[str, dict[str, Hits]]:
    """Train each arm for each seed. Returns what was found, by arm, and by held-out pool or as
    :data:`ZERO_SHOT`."""
    device, dim = device_of(options), pool.images.shape[1]
    progress = Progress("recipe comparison", "steps", len(drawn) * options.steps, logger)
    found: dict[str, dict[str, list[Hits]]] = {draw.arm: defaultdict(list) for draw in drawn}
    for draw in drawn:
        model = TextModel(captions.words, dim, options, draw.seed, device)
        model.fit(
            pool.images[draw.images],
            captions.of(draw.texts),
            draw.arm,
            lambda note: progress.advance(note=note),
        )
        for name, rows in to_search.items():
            found[draw.arm][name].append(_hits(*model.ranks(pool.images[rows], captions.of(rows))))
        if to_classify:
            names = captions.of(_names(pool, to_classify))
            right = model.finds(pool.images[to_classify.rows], names, to_classify.labels)
            found[draw.arm][ZERO_SHOT].append(right[:, None].astype(np.float32))
    return {
        arm: {name: np.stack(of_seeds) for name, of_seeds in by_pool.items()}
        for arm, by_pool in found.items()
    }


def _hits(by_text: Rows, by_image: Rows) -> Hits:
    """Whether each pair was found, (pairs, measures), in the order of :data:`MEASURES`."""
    found = [ranks < most for ranks in (by_text, by_image) for most in (1, _NEAREST)]
    both = (found[1].astype(np.float32) + found[3]) / 2
    return np.stack([*found, both], axis=-1).astype(np.float32)


def _result(
    hits: Mapping[str, Mapping[str, Hits]],
    to_train: Mapping[str, Rows],
    to_search: Mapping[str, Rows],
    to_classify: Labelled | None,
    samples: int,
    matching: float,
    options: ComparisonOptions,
    model: str,
) -> Comparison:
    # A found pair of the pools counts as any other does; zero-shot, each class does.
    groups = {name: np.zeros(len(rows), np.int64) for name, rows in to_search.items()}
    measures = [(name, measure, name, at) for name in groups for at, measure in enumerate(MEASURES)]
    if to_classify:
        groups[ZERO_SHOT] = to_classify.labels
        measures.append((MATCHING, ZERO_SHOT, ZERO_SHOT, 0))
    found = {name: {arm: of_arm[name] for arm, of_arm in hits.items()} for name in groups}
    drawn = {name: resampled(by_arm, groups[name]) for name, by_arm in found.items()}
    means = {
        name: {arm: mean_of(one, groups[name]) for arm, one in by_arm.items()}
        for name, by_arm in found.items()
    }

    def difference(name: str, arm: str, other: str, measure: int) -> Interval:
        apart = drawn[name][arm][:, measure] - drawn[name][other][:, measure]
        mean = means[name][arm][measure] - means[name][other][measure]
        return interval_of(mean, apart, options.seeds)

    def value(name: str, arm: str, measure: int) -> Interval:
        found = interval_of(means[name][arm][measure], drawn[name][arm][:, measure], options.seeds)
        return found.model_copy(update={"low": max(0.0, found.low), "high": min(1.0, found.high)})

    arms = [
        Arm(
            name=arm,
            pairs=len(rows),
            measured=[
                Measured(
                    held_out=held_out,
                    measure=measure,
                    value=value(name, arm, at),
                    above_random=None if arm == RANDOM else difference(name, arm, RANDOM, at),
                )
                for held_out, measure, name, at in measures
            ],
        )
        for arm, rows in to_train.items()
    ]
    recipes = [arm for arm in to_train if arm not in CONTROLS]
    at = MEASURES.index(SUMMARY)
    return Comparison(
        model=model,
        samples=samples,
        options=versioned(options),
        matching=matching,
        held_out=[
            HeldOut(name=name, pairs=len(rows), chance={1: 1 / len(rows), 10: 10 / len(rows)})
            for name, rows in to_search.items()
        ],
        arms=arms,
        between=[
            Between(
                recipe=recipe, other=other, held_out=name, above=difference(name, recipe, other, at)
            )
            for number, recipe in enumerate(recipes)
            for other in recipes[number + 1 :]
            for name in to_search
        ],
        zero_shot=_zero_shot(to_classify) if to_classify else None,
    )


def _zero_shot(to_classify: Labelled) -> ZeroShot:
    counts = np.bincount(to_classify.labels).tolist()
    return ZeroShot(
        classes=dict(zip(to_classify.classes, counts, strict=True)),
        left_out=to_classify.left_out,
        # As the measured values are, so that a model that guesses is not above it.
        chance=_rounded(1 / len(counts)),
    )


def mean_of(hits: Hits, groups: Rows) -> NDArray[np.float32]:
    """Mean of the means of each group of pairs, (measures,)."""
    by_pair = hits.mean(axis=0)
    found: NDArray[np.float32] = np.mean(
        [by_pair[groups == group].mean(axis=0) for group in np.unique(groups)], axis=0
    )
    return found


def resampled(hits: Mapping[str, Hits], groups: Rows) -> dict[str, NDArray[np.float32]]:
    """Means of resampled seeds and held-out pairs, (resamples, measures), by arm.

    The resamples are the same for all arms, so that differences of two arms are paired. ``groups``:
    number of each pair's group, (pairs,). Pairs are resampled in each, and all groups count alike.
    """
    seeds, pairs, _ = next(iter(hits.values())).shape
    rng = np.random.default_rng(0)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), _RESAMPLES) / np.float32(seeds)
    by_pair = np.zeros((_RESAMPLES, pairs), np.float32)
    numbers = np.unique(groups)
    for number in numbers:
        rows = np.flatnonzero(groups == number)
        times = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), _RESAMPLES)
        by_pair[:, rows] = times / (len(rows) * len(numbers))
    by_seed = by_seed.astype(np.float32)
    return {
        arm: np.stack(
            [
                np.vecdot(by_seed @ found[:, :, measure], by_pair)
                for measure in range(found.shape[2])
            ],
            axis=-1,
        )
        for arm, found in hits.items()
    }


def interval_of(mean: np.floating, resampled: NDArray[np.floating], seeds: int) -> Interval:
    """The 95 % interval, widened for there being few seeds."""
    low, high = np.quantile(resampled, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    wider = wider_for(seeds)
    return Interval(
        mean=_rounded(mean),
        low=_rounded(mean - wider * (mean - low)),
        high=_rounded(mean + wider * (high - mean)),
    )


def wider_for(seeds: int) -> float:
    """By what factor an interval of resamples is too narrow, as a mean of few has wider tails.

    Resampled, n values spread by sqrt((n - 1) / n) too little. And what is estimated of them
    follows Student's distribution: its quantile is expanded around the normal one (Abramowitz and
    Stegun, 26.7.5), which from 5 values on is within 0.3 %.
    """
    free = seeds - 1
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return t / z * math.sqrt(seeds / free)


def _rounded(value: np.floating | float) -> float:
    return round(float(value), 5)
