"""What a user writes between the peers: ``glue.py pairs|embed …``.

``pairs IN OUT``: cc2dataset's links -> English texts of five characters or more, each pair once.
``embed SHARDS CONFIGS MODEL WEIGHTS THRESHOLD OUT``: img2dataset's tars through torch's loader and
open_clip, and the vectors and rows whose cosine reaches the threshold. (clip-retrieval loads no
model whose architecture is a file of one's own, so this is the loop that one writes instead.)
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_BATCH = 64


def pairs(raw: str, out: str) -> None:
    import pycld2

    seen, kept = set(), []
    for row in pq.read_table(raw).to_pylist():
        url, text = row["url"], " ".join(row["alt"].split())
        if (url, text) in seen or len(text) < 5:
            continue
        seen.add((url, text))
        reliable, _, found = pycld2.detect(text, isPlainText=True)
        if reliable and found[0][1] == "en":
            kept.append({"url": url, "text": text})
    pq.write_table(pa.Table.from_pylist(kept), out)


def embed(shards: str, configs: str, model: str, weights: str, threshold: str, out: str) -> None:
    import open_clip
    import torch
    from PIL import Image

    open_clip.add_model_config(Path(configs))
    clip, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=weights)
    clip.eval()
    tokenizer = open_clip.get_tokenizer(model)
    paths = sorted(Path(shards).glob("*.tar"))

    class Samples(torch.utils.data.IterableDataset[Any]):
        """Each worker reads tars of its own."""

        def __iter__(self) -> Iterator[tuple[dict[str, str], torch.Tensor]]:
            worker = torch.utils.data.get_worker_info()
            assert worker is not None
            for path in paths[worker.id :: worker.num_workers]:
                with tarfile.open(path) as tar:
                    members = {member.name: member for member in tar}
                    for name in sorted(members):
                        if not name.endswith(".jpg"):
                            continue
                        about = tar.extractfile(members[f"{name[:-4]}.json"])
                        picture = tar.extractfile(members[name])
                        assert about is not None
                        assert picture is not None
                        image = Image.open(io.BytesIO(picture.read())).convert("RGB")
                        yield json.load(about), preprocess(image)

    loader = torch.utils.data.DataLoader(
        Samples(), batch_size=_BATCH, num_workers=os.cpu_count() or 1, collate_fn=list
    )
    rows: list[dict[str, str]] = []
    images: list[np.ndarray] = []
    texts: list[np.ndarray] = []
    for batch in loader:
        with torch.inference_mode():
            pixels = torch.stack([one[1] for one in batch])
            images.append(clip.encode_image(pixels, normalize=True).numpy())
            tokens = tokenizer([one[0]["caption"] for one in batch])
            texts.append(clip.encode_text(tokens, normalize=True).numpy())
        rows.extend(one[0] for one in batch)
    image, text = np.concatenate(images), np.concatenate(texts)
    similarity = (image * text).sum(axis=1)
    keep = similarity >= float(threshold)
    folder = Path(out)
    for kind, vectors in (("img_emb", image), ("text_emb", text)):
        (folder / kind).mkdir(parents=True)
        np.save(folder / kind / f"{kind}_0.npy", vectors[keep].astype(np.float16))
    table = pa.table(
        {
            "url": [row["url"] for row in rows],
            "text": [row["caption"] for row in rows],
            "similarity": similarity,
        }
    )
    pq.write_table(table.filter(pa.array(keep)), folder / "subset.parquet")


if __name__ == "__main__":
    if sys.argv[1] == "pairs":
        pairs(*sys.argv[2:])
    else:
        embed(*sys.argv[2:])
