"""The requests that the service accepts, in JSON."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.filters import Filters, LicenseTerms, NsfwTag

_EXCLUDED: Final = re.compile(r'(?<!\S)-(?:"([^"]+)"|(\w\S*))')


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


NoneIfEmpty = BeforeValidator(_none_if_empty)
Text = Annotated[str | None, NoneIfEmpty]


class _Request(BaseModel):
    # Unknown parameters of other clients' versions are ignored, as clip-retrieval does.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class KnnRequest(_Request):
    """A query as clip-retrieval's: one of text, image, image_url and embedding_input."""

    text: Text = None
    image: Text = Field(None, description="A JPEG, PNG or WebP file in base64")
    image_url: Text = None
    embedding_input: list[float] | None = Field(
        None, max_length=65_536, description="A vector of the index's CLIP model"
    )
    modality: Literal["image", "text"] = Field(
        "image", description="Search over images or captions"
    )
    num_images: int = Field(100, ge=0, description="Number of results with metadata")
    num_result_ids: int | None = Field(
        None, ge=0, description="Number of results; those beyond num_images have only their ids"
    )
    indice_name: Text = None
    deduplicate: bool = Field(False, description="Fold near-duplicates into one result")
    use_safety_model: bool = Field(False, description="Leave out samples tagged UNSURE or NSFW")
    use_violence_detector: bool = Field(False, description="Ignored: there is no such detector")
    use_mclip: bool = Field(False, description="Ignored: there is no multilingual model")
    aesthetic_score: Annotated[int | None, NoneIfEmpty] = Field(
        None,
        ge=0,
        le=9,
        description="Move the query along the aesthetic head's direction: 9 towards higher scores,"
        " 0 towards lower ones; ignored without a linear head of that name",
    )
    aesthetic_weight: Annotated[float | None, NoneIfEmpty] = Field(
        None, description="How far to move the query, whose length is 1; by default 0.5"
    )

    @model_validator(mode="after")
    def _asks(self) -> KnnRequest:
        if (self.text or self.image or self.image_url or self.embedding_input) is None:
            raise ValueError("give text, image, image_url or embedding_input")
        return self

    @property
    def ignored(self) -> list[str]:
        """Parameters that ask for something that no service has."""
        return [name for name in ("use_mclip", "use_violence_detector") if getattr(self, name)]


class MetadataRequest(_Request):
    """A request as clip-retrieval's for the metadata of ids from a query."""

    ids: list[int] = Field(max_length=3_000)
    indice_name: Text = None


class SearchRequest(_Request):
    """The page's query, which combines text, image, image_url and like."""

    text: Text = Field(None, description='Words; results steer away from -word and -"two words"')
    image: Text = Field(None, description="A JPEG, PNG or WebP file in base64")
    image_url: Text = None
    like: Text = Field(None, description="The `sample` of a result, to find more like its image")
    over: Literal["image", "text"] = Field("image", description="What to search over")
    limit: int = Field(40, ge=1, le=200)
    offset: int = Field(0, ge=0)
    fold: bool = Field(True, description="Fold near-duplicates into one result")
    safe: bool = Field(True, description="Leave out samples tagged UNSURE or NSFW")
    min_score: float | None = Field(None, description="Lowest cosine with the query")
    min_similarity: float | None = Field(None, description="Lowest cosine of image and caption")
    min_width: int | None = Field(None, ge=0, description="Lowest original width, in pixels")
    min_height: int | None = Field(None, ge=0, description="Lowest original height, in pixels")
    min_scores: dict[str, float] = Field(
        default_factory=dict, max_length=20, description="Lowest score, by head"
    )
    max_scores: dict[str, float] = Field(
        default_factory=dict, max_length=20, description="Highest score, by head"
    )
    order_by: Text = Field(
        None, description="Head by whose score the 200 nearest results are sorted, best first"
    )
    license: LicenseTerms = "any"
    nsfw: NsfwTag = "any"
    language: Text = Field(None, description="ISO 639-1 code")
    crawl: Text = None

    @model_validator(mode="after")
    def _asks(self) -> SearchRequest:
        if (self.text or self.image or self.image_url or self.like) is None:
            raise ValueError("give text, image, image_url or like")
        return self

    @property
    def filters(self) -> Filters:
        return Filters(
            safe=self.safe,
            min_score=self.min_score,
            min_similarity=self.min_similarity,
            min_width=self.min_width,
            min_height=self.min_height,
            min_scores=self.min_scores,
            max_scores=self.max_scores,
            license=self.license,
            nsfw=self.nsfw,
            language=self.language,
            crawl=self.crawl,
        )


class RemovalRequest(_Request):
    """A person's request to remove a sample."""

    sample: str = Field(max_length=100, description="The `sample` of a result")
    reason: str = Field("", max_length=2_000)
    contact: str = Field("", max_length=200)


def split_text(text: str) -> tuple[str, list[str]]:
    """Split off exclusions: ``a cat -dog -"in snow"`` -> ``("a cat", ["dog", "in snow"])``.

    A text of exclusions alone is taken as written: there is nothing to steer away from them.
    """
    excluded = [quoted or word for quoted, word in _EXCLUDED.findall(text)]
    wanted = " ".join(_EXCLUDED.sub(" ", text).split())
    return (wanted, excluded) if wanted else (text, [])


def decode_image(text: str, max_bytes: int) -> bytes:
    """Decode base64, also wrapped into lines, or in a data: URL. Raises
    :class:`RequestRefusedError`."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        # Not text.split(), which takes a quarter of a second for a large image of short lines.
        body = base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestRefusedError(422, "not_base64", "the image is not valid base64") from error
    if len(body) > max_bytes:
        raise RequestRefusedError(
            413,
            "too_large",
            f"the image has {len(body):,} bytes; at most {max_bytes:,} are allowed",
        )
    return body
