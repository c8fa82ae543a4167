"""The whole demo at the smallest size: as the asset, killed and resumed, and drawn from."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.defs.build import build_defs
from laion_assets.files import LockedError
from laion_assets.generation import autoencoder, require_extra, transformer
from laion_assets.generation.autoencoder import WrongWeightsError
from laion_assets.generation.dalle import ALL, SHUFFLED, make_samples
from laion_assets.generation.drawing import draw_caption
from laion_assets.generation.evaluation import Drawn
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.pairs import Images, NoPairsError, Pairs, Shard, captions_of
from laion_assets.generation.ranking import Judge, Scores
from laion_assets.generation.scoring import REAL_EACH, Studio
from laion_assets.generation.shown_samples import SHOWN
from laion_assets.generation.trainer import save_model
from laion_assets.generation.vocabulary import Vocabulary
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.settings import load_settings
from laion_assets.tables import part_path
from tests.conftest import heard

from .conftest import MakeShards

RED_HEART = "A red heart on a white background"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, make_shards: MakeShards) -> list[Shard]:
    return make_shards(tmp_path_factory.mktemp("shards"), 2, 30)


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return load_clip(ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny"))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[Shard],
    tiny: GenerationOptions,
    clip: ClipModel,
) -> Path:
    out = tmp_path_factory.mktemp("finished")
    make_samples(shards, out, tiny, clip)
    return out


def test_what_a_finished_demo_leaves(finished: Path, tiny: GenerationOptions) -> None:
    evaluation = json.loads((finished / "evaluation.json").read_text())
    runs = {run["name"]: run for run in evaluation["runs"]}
    assert list(runs) == ["20% of the pairs", "50% of the pairs", ALL, SHUFFLED]
    assert [run["pairs"] for run in runs.values()][2:] == [evaluation["training_pairs"]] * 2
    assert runs["20% of the pairs"]["pairs"] == round(0.2 * evaluation["training_pairs"])
    for run in runs.values():
        # Barely trained: about as good as guessing one of 16 codes.
        assert run["held_out"] == pytest.approx(np.log(16), abs=0.3)
        assert [p["step"] for p in run["curve"] if p["held_out"] is not None] == [4, 8]
    means = evaluation["similarity"]
    best, every = (means[f"{ALL}: {what}"]["mean"] for what in ("best 2 of 4", "all samples"))
    assert best >= every
    assert means["real images, as stored"]["mean"] > means["real images of other captions"]["mean"]
    # Real drawings are what their captions say; those of a model that has learnt nothing are not.
    judged = evaluation["judged"]
    assert judged["real images, as stored"]["background"] == 1
    assert judged["real images, as stored"]["colour"] == 1
    assert judged[f"{ALL}: all samples"]["colour"] < 0.5
    assert judged[f"{ALL}: all samples"]["pictures"] == 4
    assert [row["guidance"] for row in evaluation["guidance"]] == [1.0, 3.0]
    assert {row["samples"] for row in evaluation["guidance"]} == {3}
    assert evaluation["captions"][0]["caption"] == RED_HEART
    report = (finished / "report.html").read_text()
    assert RED_HEART in report
    assert "No training saw these captions" in report
    pages = ("overview.png", "curves.png", "guidance.png", "captions/0000.png", "captions/0001.png")
    for name in pages:
        with Image.open(finished / name) as image:
            assert image.width > 200
    assert not (finished / ".work").exists()
    # The samples whose real pictures are in the pages are recorded.
    assert pq.read_metadata(finished / SHOWN).num_rows > 0


def test_a_caption_that_was_trained_on_is_marked_and_in_no_mean(
    tmp_path: Path, shards: list[Shard], tiny: GenerationOptions, clip: ClipModel
) -> None:
    pairs = Pairs(shards, tiny.held_out_share, tiny.seed)
    (trained,) = captions_of(pairs, pairs.training[:1])
    (held,) = captions_of(pairs, pairs.held_out[:1])
    options = tiny.model_copy(
        update={
            "captions": [trained, "nobody says this", held],
            "control": False,
            "subset_shares": [],
        }
    )
    evaluation = make_samples(shards, tmp_path, options, clip)
    assert len(evaluation.captions) == 4
    assert evaluation.trained_on == {trained}
    assert {mean.captions for _, mean in evaluation.rows()} == {2}
    captions = json.loads((tmp_path / "evaluation.json").read_text())["captions"]
    assert [one["trained_on"] for one in captions] == [True, False, False, False]
    report = (tmp_path / "report.html").read_text()
    assert report.count("This caption was trained on") == 1
    assert "No training saw these captions" not in report


def test_an_interrupted_demo_comes_to_the_same_end(
    tmp_path: Path,
    finished: Path,
    shards: list[Shard],
    tiny: GenerationOptions,
    clip: ClipModel,
) -> None:
    lines: list[str] = []

    def interrupt_at(part: str, out: Path, options: GenerationOptions = tiny) -> None:
        def log(line: str) -> None:
            lines.append(line)
            if part in line:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), heard(log):
            make_samples(shards, out, options, clip)

    out = tmp_path / "out"
    # Work with another seed is discarded.
    interrupt_at("tokens: 2/2", out, tiny.model_copy(update={"seed": 1}))
    lines.clear()
    interrupt_at("tokens: 2/2", out)
    interrupt_at("20% of the pairs: 8/8", out)
    interrupt_at(f"{ALL}: samples: 8/8", out)
    with heard(lines.append):
        make_samples(shards, out, tiny, clip)
    assert "tokens: 2/2 shards were done by an earlier run" in lines
    assert "autoencoder: 6/6 steps were done by an earlier run" in lines
    for name in ("evaluation.json", "overview.png", "transformer/model.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_captions_are_drawn_together_and_what_was_drawn_is_taken(
    tmp_path: Path, finished: Path, tiny: GenerationOptions, clip: ClipModel
) -> None:
    options = tiny.model_copy(update={"sample_batch": 2 * tiny.samples})
    vocabulary = Vocabulary(json.loads((finished / "vocabulary.json").read_text())["clip_tokens"])
    vq = autoencoder.load(finished / "autoencoder", options)
    gpt = transformer.load(finished / "transformer")
    captions = [RED_HEART, "A blue star on a white background", "A green circle"]
    studio = Studio(vq, vocabulary, Judge(clip), captions, tmp_path)
    before = studio.draw("all", gpt, options)
    assert [one.caption for one in before] == captions
    assert {path.name for path in tmp_path.iterdir()} == {"all-0000.npy", "all-0002.npy"}
    together = np.load(tmp_path / "all-0000.npy")
    assert together.shape == (2, options.samples, options.image_tokens)
    assert not np.array_equal(*together)
    np.save(tmp_path / "all-0002.npy", np.zeros((1, *together.shape[1:]), together.dtype))
    after = studio.draw("all", gpt, options)
    same = [
        np.array_equal(one.pixels, other.pixels) for one, other in zip(before, after, strict=True)
    ]
    assert same == [True, True, False]


def test_a_finished_demo_draws(finished: Path, clip: ClipModel) -> None:
    drawn = draw_caption(finished, RED_HEART, clip, 0, "cpu")
    assert drawn.pixels.shape == (4, 16, 16, 3)
    first = json.loads((finished / "evaluation.json").read_text())["captions"][0]
    assert sorted(drawn.cosines, reverse=True)[:2] == pytest.approx(first["best"], abs=2e-4)
    other = draw_caption(finished, RED_HEART, clip, 1, "cpu")
    assert not np.array_equal(drawn.pixels, other.pixels)
    assert len(draw_caption(finished, RED_HEART, clip, 0, "cpu", 2).pixels) == 2


def test_work_is_resumed_only_if_it_was_started_with_the_same_inputs(
    tmp_path: Path, finished: Path, shards: list[Shard], tiny: GenerationOptions, clip: ClipModel
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(finished / "autoencoder", weights)
    options = tiny.model_copy(
        update={"control": False, "subset_shares": [], "vq_weights": str(weights)}
    )
    out = tmp_path / "out"

    def left(options: GenerationOptions = options) -> bool:
        """Return whether a call, killed after its tokens, finds those of the call before."""
        lines = list[str]()

        def log(line: str) -> None:
            lines.append(line)
            if f"{ALL}: " in line:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), heard(log):
            make_samples(shards, out, options, clip)
        return "tokens: 2/2 shards were done by an earlier run" in lines

    assert not left()
    assert left()
    # Files of unknown origin.
    (out / ".work" / "made_of.json").unlink()
    assert not left()
    # Other weights under the same path.
    model = autoencoder.build(tiny.model_copy(update={"seed": 7}))
    save_model(model, weights)
    assert not left()
    assert not left(options.model_copy(update={"precision": "bf16"}))
    assert not left()
    # `auto` is fp32 here.
    assert json.loads((out / ".work" / "made_of.json").read_text())["precision"] == "fp32"


def test_finished_models_stay_until_the_next_are_complete(
    tmp_path: Path,
    finished: Path,
    shards: list[Shard],
    tiny: GenerationOptions,
    clip: ClipModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = tiny.model_copy(update={"seed": 1, "control": False, "subset_shares": []})

    def interrupt(line: str) -> None:
        if f"{ALL}: samples: 8/8" in line:
            # Another call in the same folder would work on the same files.
            with pytest.raises(LockedError):
                make_samples(shards, out, other, clip)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), heard(interrupt):
        make_samples(shards, out, other, clip)
    assert {path: path.read_bytes() for path in before} == before

    # Killed while the results are published: there are no models to draw with.
    with monkeypatch.context() as patch:
        patch.setattr("laion_assets.generation.dalle.replace_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_samples(shards, out, other, clip)
    with pytest.raises(FileNotFoundError, match=r"no finished demo: options\.json is missing"):
        draw_caption(out, RED_HEART, clip, 0, "cpu")
    make_samples(shards, out, other, clip)
    assert GenerationOptions.model_validate_json((out / "options.json").read_bytes()) == other
    drawn = draw_caption(out, RED_HEART, clip, 0, "cpu")
    assert len(drawn.cosines) == 4


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_models_that_do_not_belong_together_do_not_draw(
    tmp_path: Path, finished: Path, clip: ClipModel
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    words = json.loads((out / "vocabulary.json").read_text())["clip_tokens"]
    (out / "vocabulary.json").write_text(json.dumps({"clip_tokens": words[1:]}))
    with pytest.raises(WrongWeightsError, match="do not belong together"):
        draw_caption(out, RED_HEART, clip, 0, "cpu")
    shutil.rmtree(out / "transformer")
    with pytest.raises(FileNotFoundError, match="transformer is missing"):
        draw_caption(out, RED_HEART, clip, 0, "cpu")


def test_pictures_are_kept_of_the_best_and_the_worst_alone() -> None:
    cosines = np.random.default_rng(0).permutation(128).astype(np.float32)
    pixels = np.zeros((128, 2, 2, 3), np.uint8)
    pixels[:] = np.arange(128, dtype=np.uint8)[:, None, None, None]
    drawn = Drawn.of("a", pixels, Scores(cosines), 8)
    assert drawn.pixels.shape == (16, 2, 2, 3)
    assert len(drawn.cosines) == 128
    for row in (*drawn.best(8), *drawn.worst(8)):
        assert (drawn.picture(int(row)) == row).all()


def test_held_out_images_are_decoded_a_batch_at_a_time(
    tmp_path: Path,
    shards: list[Shard],
    tiny: GenerationOptions,
    clip: ClipModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, pixels = list[int](), Images.pixels

    def counted(self: Images, numbers: np.ndarray) -> np.ndarray:
        asked.append(len(numbers))
        return pixels(self, numbers)

    monkeypatch.setattr(Images, "pixels", counted)
    options = tiny.model_copy(update={"control": False, "subset_shares": [], "vq_batch": 2})
    make_samples(shards, tmp_path, options, clip)
    assert len(Pairs(shards, options.held_out_share, options.seed).held_out) > REAL_EACH
    assert max(asked) <= REAL_EACH


def test_the_asset(tmp_path: Path, shards: list[Shard], tiny: GenerationOptions) -> None:
    settings = load_settings()
    settings = settings.model_copy(
        update={
            "lake": settings.lake.model_copy(update={"root": str(tmp_path / "lake")}),
            "generation": tiny.model_copy(update={"control": False, "subset_shares": []}),
        }
    )
    lake, key = LocalLake(settings.lake), SegmentKey("CC-MAIN-2000-13", "00")
    with lake.publish("filtered_subset", key, inputs={}, code_version="1") as staging:
        for shard in shards:
            shutil.copy(shard.part, staging.path)
    with lake.publish("image_shards", key, inputs={}, code_version="1") as staging:
        for shard in shards:
            shutil.copy(shard.tar, staging.path)
            shutil.copy(shard.tar.with_suffix(".parquet"), staging.path)
    job = build_defs(settings).resolve_job_def("generation")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
    (made,) = result.asset_materializations_for_node("dalle_samples")
    assert made.metadata["training_pairs"].value > 10
    assert "data:image/" in str(made.metadata["overview"].value)
    assert RED_HEART in str(made.metadata["caption 0"].value)
    assert len(made.metadata["similarity"].value.records) == 6
    folder = lake.published("dalle_samples")
    assert Image.open(io.BytesIO((folder / "curves.png").read_bytes())).width > 500
    # Publishing deletes hidden files; a folder that had some would show it.
    assert not list(folder.glob(".*"))


def test_without_the_extra_the_definitions_load_and_the_asset_says_what_to_do() -> None:
    code = """
import sys
sys.modules["diffusers"] = None
from laion_assets.definitions import defs
from laion_assets.generation import MissingExtraError, require_extra
try:
    require_extra()
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'laion-assets[generation]'" in done.stdout
    require_extra()


def test_too_few_captions_for_a_control_are_refused_before_anything_is_trained(
    tmp_path: Path, tiny: GenerationOptions, clip: ClipModel
) -> None:
    captions = [f"caption {number}" for number in range(20)]
    rows = [{"key": f"{row:09d}", "TEXT": caption} for row, caption in enumerate(captions)]
    pq.write_table(pa.Table.from_pylist(rows), part_path(tmp_path, 0))
    shard = Shard(part_path(tmp_path, 0), tmp_path / "00000.tar", 0, len(rows))
    out = tmp_path / "out"
    pairs = Pairs([shard], tiny.held_out_share, tiny.seed)
    one_held = [*captions_of(pairs, pairs.training), *captions_of(pairs, pairs.held_out[:1])]
    one_trained = [*captions_of(pairs, pairs.held_out), *captions_of(pairs, pairs.training[:1])]
    for few in (one_held, one_trained):
        rows = [{"key": f"{row:09d}", "TEXT": caption} for row, caption in enumerate(few)]
        pq.write_table(pa.Table.from_pylist(rows), part_path(tmp_path, 0))
        with pytest.raises(NoPairsError, match="a control needs pairs with at least two captions"):
            make_samples([shard], out, tiny, clip)
        assert not out.exists()
