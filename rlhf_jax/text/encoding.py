"""Text to padded arrays and back: prompts left-padded, completions right-padded with their EOS
inside the mask.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.refusal import Refusal
from rlhf_jax.text.chat import Rendered
from rlhf_jax.text.tokenizers import Tokenizer


def prompt_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt, after the tokenizer's prefix (a BOS) unless the text brings it: never two of
    them.

    A conversation in a chat template (`chat.Rendered`) is encoded as it is: a BOS is the template's
    to write.

    Args:
      text: of the prompt; a `chat.Rendered` for a conversation.
      tokenizer: that encodes it.
    """
    return _prefixed(text, tokenizer.encode(text), tokenizer)


def _prefixed(text: str, ids: list[int], tokenizer: Tokenizer) -> list[int]:
    prefix = [] if isinstance(text, Rendered) else list(tokenizer.prefix_ids)
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text as a prompt.

    Args:
      tokenizer: that encodes them.
      texts: prompts.
    """
    many = getattr(tokenizer, "encode_many", None)  # of a library, over the cores
    if many is None:
        return [len(prompt_ids(text, tokenizer)) for text in texts]
    return [
        len(_prefixed(text, ids, tokenizer)) for text, ids in zip(texts, many(texts), strict=True)
    ]


def encode_prompts(
    texts: Sequence[str], tokenizer: Tokenizer, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """tokens_PQ int32 and mask_PQ bool, left-padded to `length`.

    Args:
      texts: P prompts.
      tokenizer: that encodes them.
      length: positions Q.

    Raises Refusal for a prompt that is empty or longer than `length` tokens.
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
    """tokens_RC int32 and mask_RC bool, right-padded; longer completions lose their end (and with
    it the EOS).

    Args:
      ids: token ids of R completions.
      pad_id: fills the positions after them.
      length: positions C.
    """
    tokens_RC = np.full((len(ids), length), pad_id, np.int32)
    mask_RC = np.zeros((len(ids), length), bool)
    for row, sequence in enumerate(ids):
        kept = sequence[:length]
        tokens_RC[row, : len(kept)] = kept
        mask_RC[row, : len(kept)] = True
    return tokens_RC, mask_RC


def last_id(prompt: str, tokenizer: Tokenizer) -> int | None:
    """The last token of a prompt, where what follows it is encoded by it; else None, without
    encoding the prompt.

    Args:
      prompt: its text.
      tokenizer: that encodes it.
    """
    if not tokenizer.looks_back:
        return None
    return next(iter(prompt_ids(prompt, tokenizer)[-1:]), None)


def ended_ids(text: str, tokenizer: Tokenizer, before: int | None = None) -> list[int]:
    """Ids of a completion and its EOS, which a text that spells out an EOS at its end brings
    itself.

    Args:
      before: the last token of its prompt; None: any token of an ordinary text.

    Raises Refusal for a text that is nothing but EOS: it is as empty as "", but does not look so.
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
    """tokens_RC and mask_RC of texts, each with an EOS at its end.

    Args:
      length: positions; longer completions lose their end.
      before: the last token of each prompt, `[R]`; None: any token of an ordinary text.
    """
    ids = [
        ended_ids(text, tokenizer, last)
        for text, last in zip(texts, _each(before, len(texts)), strict=True)
    ]
    return pad_completions(ids, tokenizer.pad_id, length)


def completion_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Tokens of each text as a completion, its EOS included.

    Args:
      tokenizer: that encodes them.
      texts: completions without an EOS.
    """
    return [len(ended_ids(text, tokenizer)) for text in texts]


def completion_ids(tokens_BC: np.ndarray, mask_BC: np.ndarray) -> list[list[int]]:
    """The sampled ids of each row, EOS included: by the mask, never by the pad id.

    Args:
      tokens_BC: int32.
      mask_BC: True at sampled tokens.
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
    """Texts before the EOS.

    Args:
      before: the last token of each prompt, `[B]`; None: any token of an ordinary text.
    """
    rows = completion_ids(tokens_BC, mask_BC)
    finished = np.asarray(finished_B).tolist()
    return [
        tokenizer.decode_after(last, ids[:-1] if ended else ids)
        for ids, ended, last in zip(rows, finished, _each(before, len(rows)), strict=True)
    ]


def _each(before: Sequence[int] | np.ndarray | None, count: int) -> list[int] | list[None]:
    return [None] * count if before is None else np.asarray(before).tolist()
