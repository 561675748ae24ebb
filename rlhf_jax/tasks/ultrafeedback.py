"""UltraFeedback (Cui et al. 2023, arXiv 2310.01377), binarized: prompts with a chosen and a
rejected reply.

Used by Razin et al. 2025 (arXiv 2503.15477), who keep rows whose prompt and both replies have at
most 512 tokens. No judge: gold is a reward model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_jax.config import Natural
from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.corpora import conversations, published_files, row_files
from rlhf_jax.tasks.corpora.corpus import Corpus, CountTokens
from rlhf_jax.tasks.corpora.published_files import Dataset, Layout, Record
from rlhf_jax.tasks.corpora.record_store import Source, Store, open_store
from rlhf_jax.text import chat

Kind = Literal["prompts", "comparisons"]
NO_REPLY = (
    -100.0
)  # the score that stands where a prompt had fewer than two replies; the text is then "N/A"
COLUMNS = ("chosen", "rejected", "score_chosen", "score_rejected")
DATASET = Dataset(
    title="UltraFeedback, binarized",
    option="task.data_dir",
    remedy="a download of the dataset HuggingFaceH4/ultrafeedback_binarized from the Hugging Face "
    "Hub, whose parquet files"
    " are in data/ (the jsonl files of openbmb/UltraFeedback hold single replies, not pairs, and "
    "are not read)",
    splits={"train": ("train_prefs",), "heldout": ("test_prefs",)},
    rows={"train": (61_135,), "heldout": (2_000,)},
)


@dataclass(frozen=True)
class Config:
    """Settings: the files, the template that makes a prompt of a conversation, and the rows that
    are used.
    """

    data_dir: str = ""  # folder of the published files
    cache_dir: str = ""  # of the records; <data_dir>/array_record where empty
    chat_template: str = "pythia"  # a name, or a file or folder: see `text/chat.py`
    bos_token: str = ""  # texts that the template may name; where empty, those that come with it
    eos_token: str = ""  # as bos_token
    date: str = ""  # told to a template that asks for today's date, as 2025-01-31
    # keep comparisons whose replies have one score: which of them was chosen is then chance
    ties: bool = False
    max_reply_tokens: Natural = (
        512  # rows with a longer reply are left out when prompts are made to fit; 0: none are
    )


class UltraFeedback(Corpus):
    """The published split test_prefs is the held-out one; the chosen reply is a prompt's reference."""

    def __init__(
        self, prompts: Store, comparisons: Store, max_reply_tokens: int, template: chat.Template
    ):
        super().__init__("ultrafeedback", prompts, comparisons, template)
        self._max_reply_tokens = max_reply_tokens

    def kept_characters(
        self, records: Sequence[Record], count_tokens: CountTokens, limit: int
    ) -> list[int | None]:
        """Leaves out prompts that are too long, or have a reply that is: see `Corpus`."""
        kept = super().kept_characters(records, count_tokens, limit)
        if not self._max_reply_tokens:
            return kept
        replies = [text for record in records for text in (record["chosen"], record["rejected"])]
        counts = iter(count_tokens(replies))
        longest = [max(pair) for pair in zip(counts, counts, strict=True)]
        return [
            length if tokens <= self._max_reply_tokens else None
            for length, tokens in zip(kept, longest, strict=True)
        ]

    def references(self, split: Literal["train", "heldout"], index: int) -> tuple[str, ...]:
        return (self._prompts[split][index]["chosen"],)


def make(config: Config) -> UltraFeedback:
    """The task of a config; Refusal names what is wrong with the files or the template."""
    template = conversations.template(
        config.chat_template, config.bos_token, config.eos_token, config.date
    )
    prompts, comparisons = (
        _open(config, "prompts", template),
        _open(config, "comparisons", template),
    )
    return UltraFeedback(prompts, comparisons, config.max_reply_tokens, template)


def _open(config: Config, kind: Kind, template: chat.Template) -> Store:
    files = published_files.find(config.data_dir, DATASET)
    prompt = conversations.prompts(template)

    def read(location: str, row: row_files.Row) -> Record | None:
        (context, chosen), (other, rejected) = (
            conversations.turns(location, row, key, template) for key in COLUMNS[:2]
        )
        if context != other:
            raise Refusal(f"{location}: 'chosen' and 'rejected' are replies to different prompts")
        scores = [row_files.number(location, row, key) for key in COLUMNS[2:]]
        if not chosen or (chosen == rejected and kind == "comparisons"):
            return None
        if kind == "comparisons" and (
            NO_REPLY in scores or (scores[0] == scores[1] and not config.ties)
        ):
            return None
        return prompt(location, context) | {"chosen": chosen, "rejected": rejected}

    source = Source(
        task="ultrafeedback",
        kind=kind,
        published=DATASET.rows,
        files=files,
        rows=lambda split: published_files.records(files[split], [Layout(COLUMNS, read)]),
        fields=("prompt", "messages", "chosen", "rejected"),
        recipe=(*conversations.recipe(template), str(config.ties)),
    )
    return open_store(source, Path(config.cache_dir or Path(config.data_dir) / "array_record"))
