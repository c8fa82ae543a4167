from __future__ import annotations

import math
from pathlib import Path

import dagster as dg
import pytest
from pydantic import ValidationError

from laion_assets.generation.options import GenerationOptions, shipped_presets
from laion_assets.settings import SettingsError, load_settings
from resources.rules import GenerationResource


def test_omitted_fields_take_the_presets_values() -> None:
    paper = GenerationOptions(preset="paper", steps=7)
    assert (paper.image_size, paper.side, paper.image_tokens) == (256, 32, 1024)
    assert paper.steps == 7
    # One epoch of the paper's 7.2 million pairs.
    whole = GenerationOptions(preset="paper")
    assert whole.steps * whole.batch * whole.accumulate == 7_200_000
    assert (GenerationOptions().image_size, GenerationOptions().image_tokens) == (64, 64)
    assert set(shipped_presets()) == {"demo", "paper"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge': the presets are demo, paper"),
        ({"image_size": 60}, "not a multiple of 8"),
        ({"vq_channels": [2, 8]}, "at least 4"),
        ({"vq_channels": [0]}, "at least 4"),
        ({"vq_channels": [32, 36]}, "multiples of 8, the number of groups"),
        ({"heads": 7}, "not a multiple of heads"),
        ({"samples": 4}, "best 8 is more than samples 4"),
        ({"subset_shares": [1.0]}, "above 0 and below 1"),
        ({"guidance_compared": [0.5]}, "greater than or equal to 1"),
        ({"guidance_compared": [math.inf]}, "finite"),
        ({"guidance": math.nan}, "greater than or equal to 1|finite"),
        ({"caption_dropout": 0.0}, "guidance and guidance_compared above 1 needs"),
        ({"caption_dropout": 0.0, "guidance": 1.0}, "^.*\n.*guidance_compared above 1 needs"),
    ],
)
def test_options_that_do_not_fit_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GenerationOptions.model_validate(wrong)


@pytest.mark.parametrize(
    "given",
    [
        {"preset": "paper", "guidance": 2.0, "caption_dropout": 0.1},
        {"steps": 800, "batch": 64, "dropout": 0.1, "subset_shares": [0.05, 0.25]},
        {"vq_weights": "", "image_size": 32, "vq_channels": [32, 64, 64], "codebook": 256},
        {},
    ],
)
def test_a_run_has_the_options_of_the_settings(given: dict[str, object]) -> None:
    """Dagster drops what equals a class's default, which the preset's value must not replace."""
    options, seen = GenerationOptions.model_validate(given), []

    @dg.asset
    def drawn(generation: GenerationResource) -> None:
        seen.append(generation.options())

    resource = GenerationResource.of(options)
    assert dg.materialize([drawn], resources={"generation": resource}).success
    assert seen == [options]


def test_the_settings_file_has_a_section_for_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[generation]\npreset = "paper"\nsamples = 64\n')
    options = load_settings(path).generation
    assert (options.preset, options.samples, options.width) == ("paper", 64, 512)
    assert GenerationResource(**options.model_dump()).width == 512
    path.write_text("[generation]\nsample = 64\n")
    with pytest.raises(SettingsError, match=r"\[generation\] has no sample"):
        load_settings(path)
