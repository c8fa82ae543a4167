from __future__ import annotations

from pathlib import Path

import pytest

from laion_assets.defs.build import build_defs
from laion_assets.defs.code_version import code_version
from laion_assets.download.options import DownloadOptions
from laion_assets.filtering.recipe import RecipeError, load_recipe
from laion_assets.options import versioned
from laion_assets.settings import SettingsError, load_settings, sample_config


def test_the_shipped_files_are_valid() -> None:
    sample = load_settings(sample_config())
    assert sample.crawl_source.segments_per_crawl == 2
    assert sample.clip.key == "laion-assets-tiny/laion-assets-tiny"
    real = load_settings(sample_config().with_name("commoncrawl.toml"))
    assert real.clip.key == "ViT-B-32/openai"
    assert real.download.connect_to == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pairs]\nmin_txt_chars = 5", r"\[pairs\] has no min_txt_chars"),
        ("[pair]\n", r"no section \[pair\]"),
        ("pairs = 3", r"\[pairs\] must be a table"),
        ("[crawl_source]\nsegments_per_crawl = 0", "crawl_source.segments_per_crawl"),
        ("[pairs\n", "is not TOML"),
        ("[download]\nencode_format = 'png'", "encode_quality of a png is .* 0 to 9, not 95"),
        ("subsets = 3", r"\[subsets\] must be a table"),
        ("[subsets]\nmine = 3", r"\[subsets.mine\] must be a table"),
        ("[subsets.mine]\ntreshold = 0.3", r"\[subsets.mine\] has no treshold; known: .*recipe"),
        ("[subsets.Mine]\nthreshold = 0.3", "'Mine' is not a subset's name like laion5b-en"),
        ("[subsets.mine]\nwhere = 'widht > 3'", "subsets.mine.where: .*widht"),
        ("[subsets.laion5b-en]\n", 'laion5b-en: .*write: recipe = "NAME"'),
        ('[lake]\nroot = "lakes/v=2"', "lake: root lakes/v=2 must not hold ="),
        ('[lake]\nroot = "s3://bucket/[old]"', r"must not hold \["),
        ("[subset]\nthreshold = 0.2\nversion = 2", "subset: .*needs a name of its own"),
        ("[subset]\nthreshold = 2", "subset.threshold: .*less than or equal to 1"),
        ("[subset]\nthreshold = '0.2 '\nrecipe = 'nobody'", "subset: no recipe 'nobody'"),
        ("[subset]\ntreshold = 0.2", r"\[subset\] has no treshold; known: .*recipe"),
        ("[retries.network]\nfoo = 1", r"\[retries.network\] has no foo; known: times, delay_s"),
        ("lists = 3", r"\[lists\] must be a table|lists: "),
        ('[[lists]]\nname = "Mine"\nfiles = ["a"]', "'Mine' is not a list's name"),
        ('[[lists]]\nname = "mine"\nfiles = []', "lists.0.files: "),
        ('[[lists]]\nname = "a"\nfiles = ["b"]\nrows = 3', r"\[lists.0\] has no rows; known: url"),
        (2 * '[[lists]]\nname = "a"\nfiles = ["b"]\n', "several lists are named a"),
        ('[assets]\nowners = ["me"]', "assets.owners.0: String should match"),
        ('[notify]\nui = "https://x.test/?token=abc"', "notify: ui looks like a secret"),
        ('[lake]\nroot = "s3://AKIA:hush@bucket/"', "lake: root looks like a secret"),
        ('[notify]\nui = "https://hush@x.test/"', "notify: ui looks like a secret"),
        ("[heads.mine]\nfile = 'nowhere.json'", r"heads: no head 'nowhere.json'.*shipped"),
        ("[heads.Mine]\nfile = 'watermark-tiny'", "heads: 'Mine' is not a head's name"),
        ("[heads.mine]\nfiles = 'a'", r"\[heads.mine\] has no files; known: file"),
        (
            "[subset]\nname = 'own'\nmax_scores = { watermark = 0.5 }",
            r"'own' needs scores of watermark, but there is no section \[heads.watermark\]",
        ),
        (
            '[download.connect_to]\n"a:80" = "http://me:hush@x.test"',
            "download: connect_to.a:80 looks like a secret|connect_to: .*",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(path)


@pytest.mark.parametrize("section", ["lake", "crawl_source"])
@pytest.mark.parametrize(
    "name",
    ["secret_access_key", "aws_access_key_id", "key", "token", "account_key", "sas_token",
     "service_account_key", "password", "connection_string", "AWS_SESSION_TOKEN"],
)  # fmt: skip
def test_a_key_in_the_file_is_refused_with_the_way_out(
    tmp_path: Path, section: str, name: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[{section}]\nstorage_options = {{ {name} = 'hushhush' }}\n")
    with pytest.raises(SettingsError, match=rf"storage_options.{name}.* environment") as refused:
        load_settings(path)
    assert "hushhush" not in str(refused.value)


def test_what_is_no_key_may_stand_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    options = {
        "endpoint": "http://127.0.0.1:9000", "region": "us-east-1", "skip_signature": "true",
        "google_service_account_path": "/run/key.json", "aws_sse_kms_key_id": "arn:aws:kms:1",
        "web_identity_token_file": "/run/token", "bucket_key_enabled": "true",
    }  # fmt: skip
    written = ", ".join(f'{name} = "{value}"' for name, value in options.items())
    path.write_text(f"[lake]\nstorage_options = {{ {written} }}\n[subsets.monkeys]\n")
    assert load_settings(path).lake.storage_options == options


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_a_changed_rule_changes_the_code_version_and_a_thread_count_does_not() -> None:
    settings = load_settings(sample_config())
    rules = settings.pairs
    other = rules.model_copy(update={"min_text_chars": 9})
    assert code_version(1, rules) != code_version(1, other)
    assert code_version(1, rules) != code_version(2, rules)
    fetch = settings.download
    more = fetch.model_copy(update={"concurrency": fetch.concurrency + 1})
    assert code_version(1, fetch) == code_version(1, more)
    larger = fetch.model_copy(update={"image_size": fetch.image_size + 1})
    assert code_version(1, fetch) != code_version(1, larger)


def test_a_missing_threshold_is_noticed_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.toml"
    text = f'[lake]\nroot = "{tmp_path}/lake"\n[clip]\nmodel = "local-dir:/my/model"\n'
    path.write_text(text)
    settings = load_settings(path)
    assert settings.clip.key == "local-dir:/my/model"
    assert "laion-assets calibrate" in caplog.text
    with pytest.raises(SettingsError, match=r"\[subset\] no similarity threshold .*my/model"):
        build_defs(settings)

    caplog.clear()
    path.write_text(text + "[subset]\nthreshold = 0.32\n[subsets.small]\nthreshold = 0.4\n")
    settings = load_settings(path)
    assert (settings.subset.title, settings.subset.threshold) == ("laion400m@0.32 v1", 0.32)
    assert not caplog.text
    assert build_defs(settings)


def test_recipes_are_taken_by_name_or_written_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [subset]
        recipe = "laion5b-en"

        [subsets.laion400m]
        recipe = "laion400m"

        [subsets.portraits]
        version = 2
        where = "height > width"
        """
    )
    settings = load_settings(path)
    assert settings.subset == load_recipe("laion5b-en")
    assert list(settings.subsets) == ["laion400m", "portraits"]
    assert settings.subsets["portraits"].title == "portraits v2"
    assert settings.recipe("portraits") == settings.subsets["portraits"]
    assert settings.recipe("laion400m") == load_recipe("laion400m")
    with pytest.raises(RecipeError, match="no recipe 'landscapes'"):
        settings.recipe("landscapes")
    path.write_text("")
    assert load_settings(path).subset == load_recipe("laion400m")


def test_a_setting_that_came_later_makes_nothing_stale_at_its_default() -> None:
    assert "scaled_decoding" not in versioned(DownloadOptions())
    assert versioned(DownloadOptions(scaled_decoding=True))["scaled_decoding"] is True
