"""One door to every CLIP model: open_clip's, the hub's, local files, and those shipped here."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.clip.cores import Cores
from laion_assets.clip.folder import problem_of
from laion_assets.clip.identity import WEIGHTS, ModelIdentity
from laion_assets.clip.options import BRING_THEIR_OWN_WEIGHTS, HUB, LOCAL, ClipOptions
from laion_assets.clip.precision import possible_precision
from laion_assets.clip.preprocessing import Preprocessing
from laion_assets.clip.texts import TextTower, batches_by_length

if TYPE_CHECKING:
    import torch
    from PIL import Image

CONFIGS: Final = Path(__file__).with_name("model_configs")
_GUIDE: Final = "docs/own-model.md says how to use a model of one's own"
_PROBE: Final = "Eine Katze, 3 çats & <b>猫</b>, isn't it?"
"""Text by whose tokens tokenizers of the same class are distinguished."""
_IN_FLIGHT: Final = 2
"""Batches queued on an accelerator while the next one is prepared."""
AT_ONCE: Final = 8
"""Pictures at most that a core encodes at once. Of more, the largest layers take more than the
32 MiB up to which malloc reuses memory; to map it anew for every layer took up to two fifths of the
time (measured with ViT-B-32, RN50 and the shipped model)."""
_FOLD: Final = ("fuse", "reparameterize", "switch_to_deploy")
"""Methods of timm's modules that can be folded."""
Tokenizer = Callable[[list[str]], Any]
"""Whole texts -> int64 tensor (n, context); it truncates by tokens."""
# open_clip raises AssertionError for weights of another architecture.
_LOAD_ERRORS: Final = (OSError, RuntimeError, ValueError, ImportError, LookupError, AssertionError)


class ClipLoadError(RuntimeError):
    """A model cannot be loaded; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """A model for open_clip to load: architecture, weights, activation, preprocessing."""

    model: str
    pretrained: str | None
    quick_gelu: bool = False
    preprocess: dict[str, Any] = field(default_factory=dict)
    fetched_from: str | None = None
    """Where open_clip fetches the weights from; None if nothing is fetched."""


def resolve(options: ClipOptions) -> Source:
    """Find a model's weights and the settings that belong to them.

    A tag's activation function and preprocessing belong to the weights, not to the architecture.
    OpenAI's were trained with QuickGELU; without it `ViT-B-32` gives other embeddings, and
    open_clip only warns. Raises :class:`ClipLoadError` for an unknown name.
    """
    import open_clip

    _register_shipped_models()
    if options.model.startswith(BRING_THEIR_OWN_WEIGHTS):
        if options.model.startswith(HUB):
            return Source(options.model, None, fetched_from=options.model)
        if problem := problem_of(Path(options.model.removeprefix(LOCAL))):
            raise ClipLoadError(f"no model can be loaded by {options.model}: {problem}; {_GUIDE}")
        return Source(options.model, None)
    if options.model not in open_clip.list_models():
        raise ClipLoadError(
            f"open_clip has no model {options.model!r}; `python -c 'import open_clip;"
            f" print(open_clip.list_models())'` lists those that it has; {_GUIDE}"
        )
    if options.weights is not None and not Path(options.weights).is_file():
        raise ClipLoadError(f"{options.key}: the weights file {options.weights} does not exist")
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
        # The image size belongs to the architecture; open_clip takes it from the built model.
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


def tokenizer_of(options: ClipOptions) -> Tokenizer:
    """Load the tokenizer of a model, without the model. Raises :class:`ClipLoadError`."""
    import open_clip

    source = resolve(options)
    try:
        tokenizer: Tokenizer = open_clip.get_tokenizer(source.model, cache_dir=options.cache_dir)
    except _LOAD_ERRORS as error:
        raise ClipLoadError(_way_out(options, source, error)) from error
    return tokenizer


def load_clip(options: ClipOptions) -> ClipModel:
    """Load a model, ready to embed. Raises :class:`ClipLoadError`.

    Weights are never left random; open_clip itself only warns when the hub cannot be reached.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors import SafetensorError

    device = choose_device(options.device)
    source = resolve(options)
    try:
        with warnings.catch_warnings():
            # `resolve` has already fixed this mismatch.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            model = open_clip.create_model(
                source.model,
                pretrained=source.pretrained,
                force_quick_gelu=source.quick_gelu,
                force_preprocess_cfg=source.preprocess,
                cache_dir=options.cache_dir,
                require_pretrained=True,
            )
        transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        preprocess = Preprocessing(transform, device)
        model.to(device)
    except (*_LOAD_ERRORS, SafetensorError) as error:
        raise ClipLoadError(_way_out(options, source, error)) from error
    return ClipModel(options, model.eval(), preprocess, tokenizer_of(options), device)


def choose_device(name: str) -> torch.device:
    """Device that the options name; ``auto`` is the accelerator that torch finds, else the CPU.

    Raises :class:`ClipLoadError` for a device that does not exist.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ClipLoadError(f"torch has no device {name!r}: use auto, cpu or cuda") from error
    if device.type == "cpu":
        return device
    devices = torch.accelerator.device_count() if accelerator else 0
    if accelerator is None or device.type != accelerator.type or (device.index or 0) >= devices:
        found = f"{devices} of type {accelerator.type}" if accelerator else "none"
        raise ClipLoadError(
            f"there is no device {name!r} (accelerators found: {found}): use auto or cpu"
        )
    return device


def _way_out(options: ClipOptions, source: Source, error: Exception) -> str:
    """Message that says why a model cannot be loaded and what to do."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    message = f"the CLIP model {options.key} cannot be loaded: {reason}."
    if source.fetched_from is None:
        return message
    shipped = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    return (
        f"{message} Its weights are fetched from {source.fetched_from!r}. Without access to it:"
        " (1) fetch them once on a machine that has access, copy its cache folder here and set"
        " `cache_dir` to it, or"
        + (
            " copy the model's whole folder here and set `model` to local-dir:FOLDER;"
            if source.fetched_from.startswith(HUB)
            else " copy the weights file (safetensors or a state dict) and set `weights` to it;"
        )
        + (
            f" (2) or use a model that is shipped with the package: {', '.join(shipped)}"
            if shipped
            else ""
        )
    )


class ClipModel:
    """A loaded model. Embeddings are float32 ``(n, dim)``, each row of unit length.

    Args:
        options: those that the model was loaded by.
        model: open_clip's module, in eval mode, as it was loaded. Its image tower is brought into a
            quicker form, so that it serves no other object of this class.
        preprocess: what is done to an image before the model.
        tokenizer: of the same options, see :func:`tokenizer_of`.
        device: the device that the model is on.
    """

    def __init__(
        self,
        options: ClipOptions,
        model: Any,
        preprocess: Preprocessing,
        tokenizer: Tokenizer,
        device: torch.device,
    ) -> None:
        self.options = options
        self.module = model
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.device = device
        self._cuda = device.type == "cuda"
        self.precision = possible_precision(options.precision, device)
        self._texts = TextTower(model)
        self._cores = Cores() if device.type == "cpu" and not options.compile else None
        self._make_quick()
        self._compiled_image: Any = None
        if options.compile:
            import torch

            self._compiled_image = torch.compile(model.encode_image, dynamic=False)
        # On a CPU, autocast would convert the weights for each batch, which takes longer than fp32.
        self._converted = self.precision == "bf16" and device.type == "cpu"
        if self._converted:
            import torch

            _ = self.version  # of the weights as they were
            model.to(torch.bfloat16)

    def _make_quick(self) -> None:
        """Bring the image tower into the form in which it computes the same in less time."""
        import torch

        visual = self.module.visual
        parts = visual.trunk.modules() if hasattr(visual, "trunk") else ()
        if any(hasattr(part, how) for part in parts for how in _FOLD):
            from timm.utils.model import reparameterize_model

            _ = self.version  # of the weights as they were
            # Normalisations become part of the convolutions before them, branches one.
            visual.trunk = reparameterize_model(visual.trunk, inplace=True)
        # Convolutions are faster so, on tensor cores and on CPUs. timm makes the folded ones on the
        # CPU.
        self.module.to(self.device, memory_format=torch.channels_last)

    @property
    def key(self) -> str:
        return self.options.key

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(model=self.key, model_version=self.version)

    @cached_property
    def dim(self) -> int:
        """Width of an embedding."""
        (started,) = self._streamed([self._start_texts(self.tokenize([""]))])
        return int(started.shape[1])

    @cached_property
    def version(self) -> str:
        """Digest, 16 hex digits, of what the model is: weights, preprocessing, tokens.

        It does not depend on where the weights came from: a renamed file is the same model, and a
        changed file is another one. Nor does it depend on the device and its precision, whose
        vectors differ by rounding alone: a query on a CPU may search what a GPU embedded.
        """
        import torch

        digest = hashlib.blake2b(digest_size=8)
        preprocess = {name: str(value) for name, value in self.module.visual.preprocess_cfg.items()}
        about: list[object] = [preprocess, self.tokenize([_PROBE]).tolist()]
        # The weights do not tell the activation function.
        about.append(sorted({type(part).__name__ for part in self.module.modules()}))
        digest.update(json.dumps(about, sort_keys=True).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embed images, with the model's own preprocessing."""
        size = self.options.batch_size
        starts = range(0, len(images), size)
        batches = ([self.pixels(one) for one in images[start : start + size]] for start in starts)
        return np.concatenate([np.zeros((0, self.dim), np.float32), *self.embed_images(batches)])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed whole texts; tokens beyond the context length (77) are cut off."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return self.embed_tokens(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens of whole texts, (n, context)."""
        tokens: NDArray[np.int64] = self.tokenizer(list(texts)).numpy()
        return tokens

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Crop and resize an image for the model, (height, width, 3)."""
        return self.preprocess.pixels(image)

    def embed_images(
        self, batches: Iterable[Sequence[NDArray[np.uint8]]]
    ) -> Iterator[NDArray[np.float32]]:
        """Embed batches of :meth:`pixels`, in order.

        On CUDA the next batches are prepared while the device still works on earlier ones.
        """
        return self._streamed(self._start_images(batch) for batch in batches)

    def embed_tokens(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed tokenised texts (n, context), with texts of similar length in one batch."""
        lengths = self._texts.lengths(tokens)
        # At most as many tokens at once as a batch of the longest texts has.
        batches = batches_by_length(lengths, self.options.batch_size * tokens.shape[1])
        started = (self._start_texts(tokens[rows, : lengths[rows].max()]) for rows in batches)
        vectors = np.empty((len(tokens), self.dim), np.float32)
        for rows, part in zip(batches, self._streamed(started), strict=True):
            vectors[rows] = part
        return vectors

    def _start_images(self, batch: Sequence[NDArray[np.uint8]]) -> _Started:
        import torch

        pixels = torch.empty(
            (len(batch), *batch[0].shape), dtype=torch.uint8, pin_memory=self._cuda
        )
        np.stack(batch, out=pixels.numpy())
        encode = self.module.encode_image
        if self._compiled_image is not None and len(batch) == self.options.batch_size:
            encode = self._compiled_image  # compiled for this batch size

        return self._start(lambda some: encode(self.floats(some)), pixels, AT_ONCE)

    def floats(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn a batch of :meth:`pixels` on the device into the model's input."""
        import torch

        floats = self.preprocess.floats(pixels)
        return floats.to(torch.bfloat16) if self._converted else floats

    def _start_texts(self, tokens: NDArray[np.int64]) -> _Started:
        import torch

        encode = self._texts.encoder(tokens.shape[1])
        batch = torch.from_numpy(np.ascontiguousarray(tokens))
        return self._start(encode, batch.pin_memory() if self._cuda else batch, len(batch))

    def _start(
        self, encode: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, most: int
    ) -> _Started:
        """Encode a batch; ``most``: rows of it that a CPU's core encodes at once."""
        import torch
        from torch.nn import functional

        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        if self._converted:
            dtype = None

        def encoded(some: torch.Tensor) -> torch.Tensor:
            half = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
            with torch.inference_mode(), half:
                return functional.normalize(encode(some).float(), dim=-1)

        with torch.inference_mode():
            moved = batch.to(self.device, non_blocking=self._cuda)
            parts = self._cores.each(encoded, moved, most) if self._cores else [encoded(moved)]
            vectors = torch.cat(parts)
            # On CUDA this copies to pinned memory, and is complete after the event below.
            on_cpu = vectors.to("cpu", non_blocking=self._cuda)
        if not self._cuda:
            return _Started(on_cpu, None)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self.device))
        return _Started(on_cpu, copied)

    def _streamed(self, started: Iterable[_Started]) -> Iterator[NDArray[np.float32]]:
        waiting: deque[_Started] = deque()
        for one in started:
            waiting.append(one)
            if len(waiting) > (_IN_FLIGHT if self._cuda else 0):
                yield waiting.popleft().vectors()
        while waiting:
            yield waiting.popleft().vectors()


@dataclass(frozen=True)
class _Started:
    """A batch that the device works on or has finished."""

    on_cpu: Any
    copied: Any
    """CUDA event after which ``on_cpu`` is complete; None if it is complete already."""

    def vectors(self) -> NDArray[np.float32]:
        if self.copied is not None:
            self.copied.synchronize()
        vectors: NDArray[np.float32] = self.on_cpu.numpy()
        return vectors
