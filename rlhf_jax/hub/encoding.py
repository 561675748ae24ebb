"""Text to padded arrays and back: prompts left-padded, completions right-padded with their EOS inside the mask."""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.hub.tokenizers import Tokenizer
from rlhf_jax.refusal import Refusal


def prompt_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt, after the tokenizer's prefix (a BOS) unless the text brings it: never two of them."""
    return _prefixed(tokenizer.encode(text), tokenizer)


def _prefixed(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    prefix = list(tokenizer.prefix_ids)
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has as a prompt."""
    many = getattr(tokenizer, "encode_many", None)  # of a library, over the cores
    if many is None:
        return [len(prompt_ids(text, tokenizer)) for text in texts]
    return [len(_prefixed(ids, tokenizer)) for ids in many(texts)]


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens_PQ int32 and mask_PQ bool, left-padded to `length`.

    Raises Refusal for a prompt that is empty or longer than `length` tokens.
    """
    tokens_PQ = np.full((len(texts), length), tokenizer.pad_id, np.int32)
    mask_PQ = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        ids = prompt_ids(text, tokenizer)
        if not 0 < len(ids) <= length:
            raise Refusal(f"a prompt has {len(ids)} tokens; accepted: 1 to max_prompt_tokens = {length}: {text[:80]!r}")
        tokens_PQ[row, length - len(ids) :] = ids
        mask_PQ[row, length - len(ids) :] = True
    return tokens_PQ, mask_PQ


def pad_completions(ids: Sequence[Sequence[int]], pad_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens_RC int32 and mask_RC bool, right-padded; longer completions lose their end (and with it the EOS)."""
    tokens_RC = np.full((len(ids), length), pad_id, np.int32)
    mask_RC = np.zeros((len(ids), length), bool)
    for row, sequence in enumerate(ids):
        kept = sequence[:length]
        tokens_RC[row, : len(kept)] = kept
        mask_RC[row, : len(kept)] = True
    return tokens_RC, mask_RC


def encode_completions(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens_RC and mask_RC of texts, each with an EOS at its end."""
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    return pad_completions(ids, tokenizer.pad_id, length)


def completion_ids(tokens_BC: np.ndarray, mask_BC: np.ndarray) -> list[list[int]]:
    """The sampled ids of each row, EOS included: by the mask, never by the pad id."""
    return [row[mask].tolist() for row, mask in zip(np.asarray(tokens_BC), np.asarray(mask_BC), strict=True)]


def decode_completions(
    tokens_BC: np.ndarray, mask_BC: np.ndarray, finished_B: np.ndarray, tokenizer: Tokenizer
) -> list[str]:
    """Texts before the EOS."""
    texts = []
    for ids, finished in zip(completion_ids(tokens_BC, mask_BC), np.asarray(finished_B), strict=True):
        texts.append(tokenizer.decode(ids[:-1] if finished else ids))
    return texts
