"""The sample crawl's committed inputs: ``images.zip``, ``plan.json`` and ``ATTRIBUTION.md``."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from laion_assets.files import atomic_path, write_json, write_text
from laion_assets.sample_crawl.plan import DATA

from .corpus import sources
from .sample_judge import MARGIN, Candidate, Judge
from .sample_texts import ALTS_EACH

STYLES = ("fluent-emoji", "noto")
_PICTURE = "special/5000.jpg"
"""The only special file that a pair of the plan has."""


@dataclass
class Inputs:
    """The pictures by file name, the pairs, and the texts that are not English."""

    content: dict[str, bytes]
    pairs: list[Candidate]
    foreign: list[dict[str, str]]


def read_inputs(data: Path = DATA) -> Inputs:
    """The inputs as they were written last."""
    plan = json.loads((data / "plan.json").read_text("utf-8"))
    with zipfile.ZipFile(data / "images.zip") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    return Inputs(content, [Candidate(**pair) for pair in plan["pairs"]], plan["foreign"])


def write_inputs(inputs: Inputs, judge: Judge, data: Path = DATA) -> None:
    """Write all three files."""
    content = dict(sorted(inputs.content.items()))
    with atomic_path(data / "images.zip") as beside, zipfile.ZipFile(beside, "w") as archive:
        for file, body in content.items():
            archive.writestr(zipfile.ZipInfo(file), body)
    about = (
        "What the sample crawl's pages say of its pictures, and what the subset stage makes of"
        f" each pair, scored by {judge.model.key} on the pipeline's own way. Pairs whose similarity"
        f" is within {MARGIN} of the threshold are left out, because rounding would decide on"
        f" them. Of up to {ALTS_EACH} texts for a matched picture the first that is clearly kept"
        " is taken; pictures with none are the model's misses, of which some stay, as"
        " below_threshold. Mismatched pairs carry another picture's text. Pairs of the group copy"
        " have an altered copy of a matched picture, and a text of their own. Written by"
        " training/sample_images.py and training/sample_copies.py."
    )
    sizes = {}
    for file, body in content.items():
        if not file.startswith("special/") or file == _PICTURE:
            width, height = Image.open(io.BytesIO(body)).size
            sizes[file] = {"width": width, "height": height}
    pairs = [
        {
            "group": one.group,
            "file": one.file,
            "text": one.text,
            "reason": one.reason,
            "similarity": one.similarity,
            "nsfw": one.nsfw,
        }
        for one in inputs.pairs
    ]
    plan = {"about": about, "model": judge.model.key, "threshold": judge.threshold,
            "pictures": sizes, "pairs": pairs, "foreign": inputs.foreign}  # fmt: skip
    write_json(data / "plan.json", plan)
    write_text(data / "ATTRIBUTION.md", attribution())
    size = (data / "images.zip").stat().st_size
    print(f"{len(content)} files, {size / 1e6:.1f} MB, {len(pairs)} pairs")


def attribution() -> str:
    """Text of ``ATTRIBUTION.md``: whose art the pictures are made of, and under which terms."""
    art = "\n".join(
        f"- `{source.style}/`: {source.attribution}. Licence: {source.licence}."
        f" From `{source.package}` {source.version}."
        for source in sources()
        if source.style in STYLES
    )
    return f"""# Whose pictures these are

The pictures in `images.zip` are composed (scaled, turned, set on a background, encoded anew) from
these drawings; the folder is the style.

{art}
- `special/`: made of one of the `noto` drawings, or of nothing.
- `copies/`: altered copies of pictures of the other folders, as `copies/KIND/` and their paths.

The texts are made of the names and keywords of the Unicode CLDR annotations, © Unicode, Inc.,
under the Unicode License v3 (Unicode-3.0).

The Apache License 2.0 is in `LICENSE-Apache-2.0.txt`. The MIT License:

{MIT}
"""


MIT = """> Copyright (c) Microsoft Corporation.
>
> Permission is hereby granted, free of charge, to any person obtaining a copy of this software
> and associated documentation files (the "Software"), to deal in the Software without
> restriction, including without limitation the rights to use, copy, modify, merge, publish,
> distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
> Software is furnished to do so, subject to the following conditions:
>
> The above copyright notice and this permission notice shall be included in all copies or
> substantial portions of the Software.
>
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
> BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
> NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
> DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
> OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""
