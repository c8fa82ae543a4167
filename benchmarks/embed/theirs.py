"""clip-retrieval's inference, run by its own interpreter.

``theirs.py SHARDS WEIGHTS OUT BATCH WORKERS`` prints a JSON line. The time is that of its own
statistics: reading, computing and storing all batches, without loading and warming up the model.
CPU seconds are those of the process and its readers for the same work.
"""

import json
import os
import sys
from pathlib import Path

from all_clip import load_clip
from clip_retrieval.clip_inference import clip_inference

MODEL = "ViT-B-32"

if __name__ == "__main__":
    shards, weights, out, batch, workers = sys.argv[1:]
    tars = sorted(Path(shards).glob("[0-9]*.tar"))
    model = f"open_clip:{MODEL}/{weights}"
    # It caches what it loads: the call below finds the model loaded and warm.
    load_clip(clip_model=model, use_jit=False, warmup_batch_size=int(batch), clip_cache_path=None)
    before = os.times()
    clip_inference(
        input_dataset=f"{shards}/{{{tars[0].stem}..{tars[-1].stem}}}.tar",
        output_folder=out,
        input_format="webdataset",
        batch_size=int(batch),
        num_prepro_workers=int(workers),
        enable_metadata=True,
        clip_model=model,
        output_partition_count=1,
    )
    spent = sum(os.times()[:4]) - sum(before[:4])
    (stats,) = [json.loads(path.read_text()) for path in Path(out, "stats").glob("*.json")]
    answer = {"n": stats["sample_count"], "seconds": stats["total_duration"], "cpu_seconds": spent}
    print("\n" + json.dumps(answer))  # its progress output lacks an end of line
