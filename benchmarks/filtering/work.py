"""One step over a folder of embeddings: ``python -m benchmarks.filtering.work STEP FOLDER``.

Prints JSON: wall-clock and CPU time of the step itself, without imports and start-up, and its
number of rows.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import image_path
from laion_assets.filtering.recipe import Recipe, load_recipe
from laion_assets.filtering.score import Earlier, score_segment
from laion_assets.filtering.similarities import cosines
from laion_assets.filtering.subset import choose, take_subset
from laion_assets.heads.convert import Description, Linear, write_head
from laion_assets.heads.score import Scorer
from laion_assets.safety.minors import load_words, names_minors
from laion_assets.safety.prompts import Categories, Prompts, Ranked, load_prompts
from laion_assets.safety.tags import tag
from laion_assets.tables import PARTS, part_number, read_parquet

MODEL: Final = "ViT-B-32/openai"
HEADS: Final = {"linear": (1,), "layers": (64, 512, 256, 1)}
"""Step -> the widths of its head's layers."""


def categories(dim: int, prompts: Prompts) -> Categories:
    """Make as many categories as the prompts have, in random directions: speed needs no model."""
    chance = np.random.default_rng(1)

    def ranked(texts: list[str], flags: list[bool]) -> Ranked:
        vectors = chance.normal(size=(len(texts), dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Ranked(tuple(texts), np.array(flags), vectors)

    return Categories(
        ranked([row.text for row in prompts.categories], [r.nsfw for r in prompts.categories]),
        ranked([row.text for row in prompts.underage], [r.underage for r in prompts.underage]),
        ranked([row.text for row in prompts.animals], [r.animal for r in prompts.animals]),
        load_words(prompts.words),
    )


def head(folder: Path, kind: str, dim: int) -> Scorer:
    """Make a head of a published shape with random weights."""
    chance = np.random.default_rng(2)
    widths = [dim, *HEADS[kind]]
    layers = [
        Linear(
            chance.normal(size=(after, before)) / before**0.5,
            chance.normal(size=after),
            "sigmoid" if after == 1 else "relu",
        )
        for before, after in itertools.pairwise(widths)
    ]
    described = Description(name=kind, source="random", licence="MIT", low=0, high=1, keep="high")
    model = ModelIdentity(model=MODEL, model_version="random")
    write_head(folder / f"{kind}.json", described, layers, model)
    return Scorer.load(kind, str(folder / f"{kind}.json"))


def prepare(step: str, folder: Path) -> Callable[[], int]:
    """Prepare a step; its input is in memory, unless reading it is part of the step."""
    embeddings, scored, out = folder / "embeddings", folder / "scored", folder / "subset"
    parts = sorted(embeddings.glob(PARTS))
    vectors = [np.load(image_path(embeddings, part_number(part)), mmap_mode="r") for part in parts]
    made = categories(vectors[0].shape[1], load_prompts("laion400m"))
    recipe = load_recipe("laion400m")
    if step == "texts":
        texts = [read_parquet(part, ["text"])["text"] for part in parts]
        return lambda: sum(int(names_minors(part, made.words).sum()) for part in texts)
    if step == "tags":
        return lambda: sum(len(tag(part, made).nsfw) for part in vectors)
    if step == "similarity":
        return lambda: sum(len(cosines(part, part)) for part in vectors)
    dim = vectors[0].shape[1]
    if step in HEADS:
        scorer = head(folder / "heads", step, dim)
        return lambda: sum(len(scorer.score(part)) for part in vectors)
    if step == "score":
        shutil.rmtree(scored, ignore_errors=True)
        return lambda: score_segment(embeddings, scored, made)
    if step == "another head":
        scorer = head(folder / "heads", "layers", dim)
        again = folder / "scored_again"
        shutil.rmtree(again, ignore_errors=True)
        return lambda: score_segment(embeddings, again, made, [scorer], Earlier(scored))
    threshold = recipe.threshold_of(MODEL)
    if step in ("choose", "predicate"):
        where = "least(width, height) >= 256 and nsfw = 'UNLIKELY'"
        asked = Recipe(name="own", where=where) if step == "predicate" else recipe
        tables = [read_parquet(part) for part in sorted(scored.glob(PARTS))]
        return lambda: sum(len(choose(table, asked, threshold)[0]) for table in tables)
    if step == "take":
        shutil.rmtree(out, ignore_errors=True)
        return lambda: take_subset(scored, embeddings, out, recipe, threshold=threshold).kept
    raise ValueError(f"unknown step {step!r}")


def main(step: str, folder: Path) -> None:
    run = prepare(step, folder)
    started, worked = time.perf_counter(), time.process_time()
    result = run()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": result}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
