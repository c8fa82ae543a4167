"""One door to every CLIP model: open_clip's, the hub's, a local file's, and those shipped here."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.clip.options import ClipOptions

if TYPE_CHECKING:
    import torch
    from PIL import Image

HERE: Final = Path(__file__).parent
CONFIGS: Final = HERE / "model_configs"
WEIGHTS: Final = HERE / "weights"
_BRING_THEIR_OWN_WEIGHTS: Final = ("hf-hub:", "local-dir:")


class ClipLoadError(RuntimeError):
    """A model cannot be loaded; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """What open_clip is asked for."""

    model: str
    pretrained: str | None
    quick_gelu: bool = False
    preprocess: dict[str, Any] = field(default_factory=dict)
    fetched_from: str | None = None
    """Where open_clip fetches the weights from; None if nothing is fetched."""


def resolve(options: ClipOptions) -> Source:
    """Find where a model's weights are and what goes with them.

    A tag's activation function and preprocessing belong to the weights, not to the architecture:
    OpenAI's were trained with QuickGELU, and `ViT-B-32` without it gives other embeddings with
    only a warning from open_clip. Raises :class:`ClipLoadError` for a name that nobody knows.
    """
    import open_clip

    _register_shipped_models()
    if options.model.startswith(_BRING_THEIR_OWN_WEIGHTS):
        remote = options.model.startswith("hf-hub:")
        return Source(options.model, None, fetched_from=options.model if remote else None)
    if options.model not in open_clip.list_models():
        raise ClipLoadError(
            f"open_clip knows no model {options.model!r}; `python -c 'import open_clip;"
            " print(open_clip.list_models())'` lists those it knows"
        )
    if options.weights is not None and not Path(options.weights).is_file():
        raise ClipLoadError(f"{options.key}: there is no weights file {options.weights}")
    shipped = WEIGHTS / f"{options.pretrained}.safetensors"
    if options.pretrained and shipped.is_file():
        return Source(options.model, options.weights or str(shipped))
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(options.model, options.pretrained)
    if tag:
        preprocess = {
            name: tag[name]
            for name in ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
            if tag.get(name) is not None
        }
        # The image size is the architecture's; open_clip takes it from the model that it built.
        preprocess.pop("size", None)
        return Source(
            options.model,
            options.weights or options.pretrained,
            quick_gelu=bool(tag.get("quick_gelu")),
            preprocess=preprocess,
            fetched_from=None if options.weights else tag.get("hf_hub") or tag.get("url"),
        )
    if options.weights or Path(options.pretrained).is_file():
        return Source(options.model, options.weights or options.pretrained)
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(options.model)) or "none"
    raise ClipLoadError(
        f"{options.pretrained!r} is neither a file nor a tag of {options.model} (its tags: {tags})"
    )


@cache
def _register_shipped_models() -> None:
    import open_clip

    if CONFIGS.is_dir():
        open_clip.add_model_config(CONFIGS)


def load_clip(options: ClipOptions) -> ClipModel:
    """Load a model, ready to embed. Raises :class:`ClipLoadError`.

    Weights are never left random: open_clip itself only warns when the hub cannot be reached.
    """
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors import SafetensorError

    source = resolve(options)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            # Of the mismatch that `resolve` has already put right.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            model = open_clip.create_model(
                source.model,
                pretrained=source.pretrained,
                force_quick_gelu=source.quick_gelu,
                force_preprocess_cfg=source.preprocess,
                cache_dir=options.cache_dir,
                require_pretrained=True,
            )
        preprocess = image_transform_v2(
            PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
        )
        tokenizer = open_clip.get_tokenizer(source.model, cache_dir=options.cache_dir)
        model.to(device)
    except (
        OSError,
        RuntimeError,
        ValueError,
        ImportError,
        LookupError,
        AssertionError,
        SafetensorError,
    ) as error:
        # AssertionError is open_clip's word for weights of another architecture.
        raise ClipLoadError(_way_out(options, source, error)) from error
    return ClipModel(options, model.eval(), preprocess, tokenizer, torch.device(device))


def _way_out(options: ClipOptions, source: Source, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    message = f"the CLIP model {options.key} cannot be loaded: {reason}."
    if source.fetched_from is None:
        return message
    shipped = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    return (
        f"{message} Its weights are fetched from {source.fetched_from!r}. Without a way there:"
        " (1) fetch them once on a machine that has one, copy its cache folder here and name it"
        " in `cache_dir`, or"
        + (
            " copy the model's whole folder here and set `model` to local-dir:FOLDER;"
            if source.fetched_from.startswith("hf-hub:")
            else " copy the weights file (safetensors or a state dict) and name it in `weights`;"
        )
        + (f" (2) or use a model shipped with the package: {', '.join(shipped)}" if shipped else "")
    )


class ClipModel:
    """A loaded model. Embeddings are float32 ``(n, dim)``, each row of unit length.

    Args:
        options: what was asked for.
        model: open_clip's module, in eval mode, on ``device``.
        preprocess: PIL image -> float32 tensor (3, height, width), as the model asks.
        tokenizer: list of whole texts -> int64 tensor (n, context); it truncates by tokens.
        device: where the model is.
    """

    def __init__(
        self,
        options: ClipOptions,
        model: Any,
        preprocess: Any,
        tokenizer: Any,
        device: torch.device,
    ) -> None:
        self.options = options
        self.module = model
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.device = device

    @property
    def key(self) -> str:
        return self.options.key

    @cached_property
    def dim(self) -> int:
        """The length of an embedding."""
        return int(self.encode_texts([""]).shape[1])

    @cached_property
    def version(self) -> str:
        """16 hex digits over everything that decides the numbers: weights, preprocessing, tokens.

        It does not depend on how the weights came here, so a renamed file is the same model and a
        changed one is not.
        """
        import torch

        digest = hashlib.blake2b(digest_size=8)
        about = [repr(self.preprocess), type(self.tokenizer).__name__, self.options.precision]
        # The activation function is in no weight.
        about += sorted({type(part).__name__ for part in self.module.modules()})
        digest.update(json.dumps(about).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embed images, preprocessed as the model asks."""
        import torch

        parts = [
            self.embed_images(torch.stack([self.preprocess(image) for image in batch]))
            for batch in self._batches(images)
        ]
        return self._stack(parts)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed whole texts; what is beyond the context length in tokens (77) is not seen."""
        parts = [self.embed_tokens(self.tokenizer(list(batch))) for batch in self._batches(texts)]
        return self._stack(parts)

    def embed_images(self, batch: torch.Tensor) -> NDArray[np.float32]:
        """Embed one batch of preprocessed images (n, 3, height, width)."""
        return self._forward(self.module.encode_image, batch)

    def embed_tokens(self, batch: torch.Tensor) -> NDArray[np.float32]:
        """Embed one batch of tokenised texts (n, context)."""
        return self._forward(self.module.encode_text, batch)

    def _forward(self, encode: Any, batch: torch.Tensor) -> NDArray[np.float32]:
        import torch

        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.options.precision
        ]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            vectors = encode(batch.to(self.device)).float().cpu().numpy()
        return normalised(vectors)

    def _batches(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        size = self.options.batch_size
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _stack(self, parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), dtype=np.float32)


def normalised(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """The rows in float32 at unit length; a row of zeros stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return result
