"""Encodes texts as padded arrays and decodes them. Prompts are left-padded; completions are
right-padded, with their EOS inside the mask.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.refusal import Refusal
from rlhf_jax.text.chat import Rendered
from rlhf_jax.text.tokenizers import Tokenizer


def prompt_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Encodes a prompt. The tokenizer's prefix (a BOS) comes first, and never twice.

    A conversation in a chat template (`chat.Rendered`) gets no prefix: its template writes the BOS.

    Args:
      text: the prompt; a `chat.Rendered` for a conversation.
      tokenizer: encodes it.

    Returns:
      The token ids.
    """
    return _prefixed(text, tokenizer.encode(text), tokenizer)


def _prefixed(text: str, ids: list[int], tokenizer: Tokenizer) -> list[int]:
    prefix = [] if isinstance(text, Rendered) else list(tokenizer.prefix_ids)
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Counts the tokens of each text as a prompt.

    Args:
      tokenizer: encodes the texts, over the cores where its library can.
      texts: prompts.

    Returns:
      For each text the number of ids that `prompt_ids` gives.
    """
    many = getattr(tokenizer, "encode_many", None)
    if many is None:
        return [len(prompt_ids(text, tokenizer)) for text in texts]
    return [
        len(_prefixed(text, ids, tokenizer)) for text, ids in zip(texts, many(texts), strict=True)
    ]


def encode_prompts(
    texts: Sequence[str], tokenizer: Tokenizer, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes prompts as left-padded arrays.

    Args:
      texts: P prompts.
      tokenizer: encodes them.
      length: Q, the positions of a row.

    Returns:
      `tokens_PQ` int32 and `mask_PQ` bool, true at tokens of the prompt.

    Raises:
      Refusal: for a prompt without tokens or with more than `length`.
    """
    tokens_PQ = np.full((len(texts), length), tokenizer.pad_id, np.int32)
    mask_PQ = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        ids = prompt_ids(text, tokenizer)
        if not 0 < len(ids) <= length:
            raise Refusal(
                f"a prompt has {len(ids)} tokens; accepted: 1 to max_prompt_tokens = {length}: "
                f"{text[:80]!r}"
            )
        tokens_PQ[row, length - len(ids) :] = ids
        mask_PQ[row, length - len(ids) :] = True
    return tokens_PQ, mask_PQ


def pad_completions(
    ids: Sequence[Sequence[int]], pad_id: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads completions. A longer one is cut at `length`, and so loses its EOS.

    Args:
      ids: token ids of R completions.
      pad_id: fills the positions after them.
      length: C, the positions of a row.

    Returns:
      `tokens_RC` int32 and `mask_RC` bool, true at tokens of the completion.
    """
    tokens_RC = np.full((len(ids), length), pad_id, np.int32)
    mask_RC = np.zeros((len(ids), length), bool)
    for row, sequence in enumerate(ids):
        kept = sequence[:length]
        tokens_RC[row, : len(kept)] = kept
        mask_RC[row, : len(kept)] = True
    return tokens_RC, mask_RC


def last_id(prompt: str, tokenizer: Tokenizer) -> int | None:
    """Returns the last token of a prompt, if the ids of a completion depend on it.

    Args:
      prompt: its text. It is encoded only if the tokenizer looks back.
      tokenizer: encodes it.

    Returns:
      The token id; None for a tokenizer that does not look back, and for a prompt without tokens.
    """
    if not tokenizer.looks_back:
        return None
    return next(iter(prompt_ids(prompt, tokenizer)[-1:]), None)


def ended_ids(text: str, tokenizer: Tokenizer, before: int | None = None) -> list[int]:
    """Encodes a completion with one EOS at its end. A text that ends in an EOS gets no second one.

    Args:
      text: the completion.
      tokenizer: encodes it.
      before: the last token of its prompt; None: any token of an ordinary text.

    Returns:
      The token ids, the EOS included.

    Raises:
      Refusal: for a text of EOS tokens alone: it is an empty completion that does not look empty.
    """
    ids = tokenizer.encode_after(before, text)
    if ids and set(ids) <= set(tokenizer.eos_ids):
        raise Refusal(
            f"a completion is {text!r}, which is nothing but an EOS; accepted: a text, without its "
            "EOS"
        )
    return ids if ids and ids[-1] in tokenizer.eos_ids else [*ids, tokenizer.eos_id]


def encode_completions(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    before: Sequence[int] | np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes completions as right-padded arrays, each with an EOS at its end.

    Args:
      texts: R completions.
      tokenizer: encodes them.
      length: C, the positions of a row; a longer completion is cut and loses its EOS.
      before: the last token of each prompt, `[R]`; None: any token of an ordinary text.

    Returns:
      `tokens_RC` int32 and `mask_RC` bool, true at tokens of the completion.

    Raises:
      Refusal: as `ended_ids`.
    """
    ids = [
        ended_ids(text, tokenizer, last)
        for text, last in zip(texts, _each(before, len(texts)), strict=True)
    ]
    return pad_completions(ids, tokenizer.pad_id, length)


def completion_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Counts the tokens of each text as a completion, its EOS included.

    Args:
      tokenizer: encodes the texts.
      texts: completions.

    Returns:
      For each text the number of ids that `ended_ids` gives.

    Raises:
      Refusal: as `ended_ids`.
    """
    return [len(ended_ids(text, tokenizer)) for text in texts]


def completion_ids(tokens_BC: np.ndarray, mask_BC: np.ndarray) -> list[list[int]]:
    """Returns the sampled ids of each row, EOS included.

    They are told from padding by the mask, because the pad id may be an EOS too.

    Args:
      tokens_BC: token ids, int32.
      mask_BC: bool, true at sampled tokens.

    Returns:
      B lists of ids, of lengths from 0 to C.
    """
    return [
        row[mask].tolist()
        for row, mask in zip(np.asarray(tokens_BC), np.asarray(mask_BC), strict=True)
    ]


def decode_completions(
    tokens_BC: np.ndarray,
    mask_BC: np.ndarray,
    finished_B: np.ndarray,
    tokenizer: Tokenizer,
    before: Sequence[int] | np.ndarray | None = None,
) -> list[str]:
    """Decodes completions to their texts before the EOS.

    Args:
      tokens_BC: token ids, int32.
      mask_BC: bool, true at sampled tokens.
      finished_B: bool, true for rows whose last sampled token is an EOS.
      tokenizer: decodes them.
      before: the last token of each prompt, `[B]`; None: any token of an ordinary text.

    Returns:
      B texts.
    """
    rows = completion_ids(tokens_BC, mask_BC)
    finished = np.asarray(finished_B).tolist()
    return [
        tokenizer.decode_after(last, ids[:-1] if ended else ids)
        for ids, ended, last in zip(rows, finished, _each(before, len(rows)), strict=True)
    ]


def _each(before: Sequence[int] | np.ndarray | None, count: int) -> list[int] | list[None]:
    return [None] * count if before is None else np.asarray(before).tolist()
