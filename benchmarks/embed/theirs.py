"""clip-retrieval's inference, run by its own interpreter.

``theirs.py SHARDS WEIGHTS OUT BATCH WORKERS`` prints a JSON line. The time is its own statistics':
reading, computing and keeping all batches, without loading and warming up the model.
"""

import json
import sys
from pathlib import Path

from clip_retrieval.clip_inference import clip_inference

MODEL = "ViT-B-32"

if __name__ == "__main__":
    shards, weights, out, batch, workers = sys.argv[1:]
    tars = sorted(Path(shards).glob("[0-9]*.tar"))
    clip_inference(
        input_dataset=f"{shards}/{{{tars[0].stem}..{tars[-1].stem}}}.tar",
        output_folder=out,
        input_format="webdataset",
        batch_size=int(batch),
        num_prepro_workers=int(workers),
        enable_metadata=True,
        clip_model=f"open_clip:{MODEL}/{weights}",
        output_partition_count=1,
    )
    (stats,) = [json.loads(path.read_text()) for path in Path(out, "stats").glob("*.json")]
    answer = {"n": stats["sample_count"], "seconds": stats["total_duration"]}
    print("\n" + json.dumps(answer))  # its progress has no end of line
