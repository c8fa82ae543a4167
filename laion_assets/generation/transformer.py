"""The autoregressive transformer over a caption's tokens and an image's codes (GPT-2's decoder).

A sequence is ``text_tokens`` tokens of the caption, followed by the image's codes, row by row. Both
share one table of tokens, in which the codes come first and the vocabulary's numbers follow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laion_assets.generation.autoencoder import Codes
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.trainer import Point, Schedule, fit, mixed
from laion_assets.generation.vocabulary import END, PAD, START

if TYPE_CHECKING:
    import torch

Tokens = NDArray[np.uint16]
Batch = tuple[Tokens, Codes]
"""Captions' tokens (n, text_tokens) and images' codes (n, image_tokens)."""


def build(options: GenerationOptions, vocabulary: int) -> Any:
    """Build an untrained GPT-2 of the options' size whose weights are drawn from the seed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=options.codebook + vocabulary,
        n_positions=options.text_tokens + options.image_tokens,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        # GPT-2's activation as one operation of torch, not seven: an eighth of a training's time.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed + 1)
        return GPT2LMHeadModel(config)


def load(folder: Path) -> Any:
    """Load a model, as ``save_model`` writes it, in eval mode."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    ).eval()


def train(
    what: str,
    model: Any,
    batch_of: Callable[[int], Batch],
    options: GenerationOptions,
    precision: str,
    checkpoint: Path,
    *,
    held_out: Callable[[], float] | None = None,
) -> list[Point]:
    """Train in place and return the loss curve.

    The curve's training loss includes the text's loss, weighted by ``text_weight``; its held-out
    loss is whatever ``held_out`` returns.

    Args:
        batch_of: returns the pairs of a forward pass by its number. Of ``options.caption_dropout``
            of them the caption is dropped, so that the model learns what guidance starts from.
    """

    def loss_of(number: int) -> torch.Tensor:
        said, codes = batch_of(number)
        dropped = np.random.default_rng([options.seed, 6, number]).random(len(said))
        said = np.where(dropped[:, None] < options.caption_dropout, no_caption(said), said)
        image, text = losses(model, said, codes, options.codebook)
        return (image.mean() + options.text_weight * text) / (1 + options.text_weight)

    schedule = Schedule.of_transformer(options, precision)
    return fit(what, model, loss_of, schedule, checkpoint, held_out=held_out)


def losses(
    model: Any, text: Tokens, codes: Codes, codebook: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of each image given its caption, in nats per code, (n,), and of the captions, a scalar
    in nats per token.

    Codes compete with codes only and words with words only, as in sampling.
    """
    from torch.nn import functional

    device = next(model.parameters()).device
    ids = joined(text, codes, codebook, device)
    hidden = model.transformer(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    length = text.shape[1]
    table = model.lm_head.weight
    of_codes = functional.linear(hidden[:, length - 1 :], table[:codebook]).float()
    image = functional.cross_entropy(
        of_codes.transpose(1, 2), ids[:, length:], reduction="none"
    ).mean(1)
    of_words = functional.linear(hidden[:, : length - 1], table[codebook:]).float()
    said = functional.cross_entropy(
        of_words.transpose(1, 2), ids[:, 1:length] - codebook, ignore_index=PAD
    )
    return image, said


def joined(text: Tokens, codes: Codes, codebook: int, device: torch.device) -> torch.Tensor:
    """Join captions and images to sequences, int64 (n, text_tokens + image_tokens)."""
    import torch

    words = text.astype(np.int64) + codebook
    return torch.from_numpy(np.concatenate([words, codes.astype(np.int64)], axis=1)).to(device)


def no_caption(text: Tokens) -> Tokens:
    """Tokens of as many empty captions, uint16 (n, text_tokens)."""
    empty = np.full_like(text, PAD)
    empty[:, :2] = START, END
    return empty


def held_out_loss(
    model: Any, text: Tokens, codes: Codes, codebook: int, precision: str, batch: int
) -> float:
    """Mean loss of the pairs' images given their captions, in nats per code."""
    import torch

    device = next(model.parameters()).device
    total = 0.0
    with torch.inference_mode(), mixed(device, precision):
        for start in range(0, len(text), batch):
            rows = slice(start, start + batch)
            total += float(losses(model, text[rows], codes[rows], codebook)[0].sum())
    return total / len(text)


def sample(
    model: Any,
    text: Tokens,
    options: GenerationOptions,
    *,
    seed: int,
    use_cache: bool = True,
) -> Codes:
    """Draw the codes of an image for each row of ``text``: (n, image_tokens).

    The same seed and rows give the same codes, also with ``use_cache`` False, which is much
    slower. With ``options.guidance`` above 1, what the caption changes in the codes' scores counts
    that many times (classifier-free guidance).
    """
    import torch
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    prompt, empty = (
        torch.from_numpy(one.astype(np.int64) + options.codebook).to(device)
        for one in (text, no_caption(text[:1]))
    )
    config = GenerationConfig(
        do_sample=True,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_new_tokens=options.image_tokens,
        max_new_tokens=options.image_tokens,
        guidance_scale=options.guidance,
        suppress_tokens=list(range(options.codebook, model.config.vocab_size)),
        use_cache=use_cache,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=options.codebook + PAD,
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        made = []
        for start in range(0, len(prompt), options.sample_batch):
            some = prompt[start : start + options.sample_batch]
            # Padding is a token like any other here: it is attended to, as in training.
            mask = torch.ones_like(some)
            made.append(
                model.generate(
                    some,
                    attention_mask=mask,
                    generation_config=config,
                    negative_prompt_ids=empty.expand_as(some),
                    negative_prompt_attention_mask=mask,
                )
            )
    codes: Codes = torch.cat(made)[:, prompt.shape[1] :].cpu().numpy().astype(np.uint16)
    return codes
