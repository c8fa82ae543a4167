"""The model card and the model's entry in the threshold table, from a training report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .captions import TEST_TEMPLATES
from .corpus import HERE, sources
from .evaluate import MISMATCHED_KEPT
from .model import NAME

_CARD = """# {name}

A small CLIP for demonstrations and tests: search and filtering with LAION Assets on one CPU and
without a network. It knows what emoji-like drawings show; it is **no replacement for
`ViT-B-32`/`openai`** on real web photographs. Made by `python -m training.train`.

## Model
| part | what it is |
|---|---|
| image tower | TinyViT-5M at 224 × 224 (timm `tiny_vit_5m_224`), two-layer head |
| text tower | transformer of 3 layers, width 128, 4 heads; CLIP's BPE, 77 tokens |
| embedding | 256 numbers, L2-normalised |
| file | {megabytes:.1f} MB, float16 safetensors; open_clip's default preprocessing |

It was trained in three steps: an image head and a linear map of a sentence model's embeddings,
matched by InfoNCE; a text tower that learns that map over captions and common words while it is
matched with pictures; the last image stage fine-tuned with both. Captions of the same concept or
meaning are never negatives of each other.

## Data
{drawings} drawings of {concepts} concepts, each composed into {views} web-like pictures
(backgrounds, sizes, aspect ratios, JPEG and WebP, then 256 × 256 with white borders). Captions are
made from Unicode CLDR short names and keywords (Unicode-3.0) and emojibase short codes (MIT).

| art | drawings | licence | attribution | used for |
|---|---|---|---|---|
{art}

Pretrained parts: {tower}. Teacher (not shipped): {teacher}.

## Figures
On {pairs} concepts drawn in the three styles that training never saw, as crawled pictures
stored at 256 × 256. The concepts themselves were seen in other styles. "Framed" captions put the
name into phrases never trained on, such as "{frame}". The training's settings were chosen by
looking at these 500; the last column is of 500 further concepts that no choice has looked at.

| | framed captions | bare names | framed, other concepts |
|---|---|---|---|
{figures}

## Threshold
{threshold} (cosine): the one that {kept:.0%} of mismatched pairs of {pairs} other held-out concepts
reach. On the test set it keeps {matched:.1%} of matched and {mismatched:.2%} of mismatched pairs
(by style: {by_style}). Of the same pictures named in other languages it keeps {languages}.

## Limits
- It knows about {concepts} concepts. Colours, counts, relations, rare words and proper names are
  weak; near-twins (clock faces, similar smileys, flags of the same colours) are confused.
- Photographs are outside its training; its image tower's pretraining helps only somewhat.
- English only.
- Emoji carry their makers' choices about people, professions and cultures. Do not use it to decide
  about people, nor as a safety filter.
- The worst matched test pairs: {worst}.
"""

_ROWS = {
    "auc": "AUC, matched against mismatched",
    "image_to_text_recall_1": "image → text recall@1",
    "image_to_text_recall_10": "image → text recall@10",
    "text_to_image_recall_1": "text → image recall@1",
    "text_to_image_recall_10": "text → image recall@10",
    "matched_cosine_p05": "matched cosine, 5th percentile",
    "matched_cosine_median": "matched cosine, median",
    "mismatched_cosine_median": "mismatched cosine, median",
    "mismatched_cosine_p99": "mismatched cosine, 99th percentile",
}


def write_card(path: Path, report: dict[str, Any]) -> None:
    """Write the model card, in Markdown."""
    pretrained = json.loads((HERE / "sources.json").read_text("utf-8"))["pretrained"]

    def credit(role: str) -> str:
        return f"{pretrained[role]['attribution']} ({pretrained[role]['licence']})"

    art = "\n".join(
        f"| {source.style} | {report['drawings'].get(source.style, '—')} | {source.licence} "
        f"| {source.attribution} | {'judging only' if source.held_out else 'training'} |"
        for source in sources()
    )
    framed, bare = report["framed_captions"], report["bare_names"]
    other = report["calibration_captions"]
    by_style = report["threshold_keeps_matched_by_style"].items()
    in_language = report["other_languages"].items()
    worst = report["worst_matched"]
    path.write_text(
        _CARD.format(
            name=NAME,
            megabytes=report["weights_bytes"] / 1e6,
            drawings=sum(report["drawings"].values()),
            concepts=report["concepts"],
            views=report["recipe"]["views"],
            art=art,
            tower=credit("image_tower"),
            teacher=credit("text_teacher"),
            pairs=round(framed["pairs"]),
            frame=TEST_TEMPLATES[1].format("dog face"),
            figures="\n".join(
                f"| {label} | {framed[row]:.3f} | {bare[row]:.3f} | {other[row]:.3f} |"
                for row, label in _ROWS.items()
            ),
            threshold=report["threshold"],
            kept=MISMATCHED_KEPT,
            matched=report["threshold_keeps_matched"],
            mismatched=report["threshold_keeps_mismatched"],
            by_style=", ".join(f"{style} {share:.1%}" for style, share in by_style),
            languages=", ".join(f"{shares['kept']:.0%} ({code})" for code, shares in in_language),
            worst=", ".join(f"{one['name']} ({one['cosine']:.2f})" for one in worst),
        ),
        "utf-8",
    )


def write_threshold(path: Path, report: dict[str, Any]) -> None:
    """Write this model's entry into the table of thresholds; other entries stay."""
    table = json.loads(path.read_text("utf-8"))
    mine = f"{NAME}/{NAME}@"
    table = {key: entry for key, entry in table.items() if not key.startswith(mine)}
    table[f"{mine}{report['model_version']}"] = {
        "threshold": report["threshold"],
        "source": (
            f"MODEL_CARD.md: the cosine that {MISMATCHED_KEPT:.0%} of mismatched held-out pairs "
            f"reach; keeps {report['threshold_keeps_matched']:.1%} of matched ones"
        ),
    }
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
