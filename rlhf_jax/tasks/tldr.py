"""TL;DR (Stiennon et al. 2020, arXiv 2009.01325): posts of Reddit to be summarised, human
summaries, and comparisons.

Prompts are cut as OpenAI cut them: a post that is too long loses what follows its last line break,
or its last character where it has none, until the prompt fits. No judge: gold is a reward model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import Split
from rlhf_jax.tasks.corpora import conversations, published_files, row_files
from rlhf_jax.tasks.corpora.corpus import Corpus, CountTokens
from rlhf_jax.tasks.corpora.published_files import Dataset, Layout, Record
from rlhf_jax.tasks.corpora.record_store import Rows, Source, Store, open_store
from rlhf_jax.tasks.corpora.row_files import Row

POST, TAIL = "\n\nPOST: ", "\n\nTL;DR:"
EOS = "<|endoftext|>"  # published completions end in this text; the pipeline adds an EOS of its own
OPENAI_FILES = ("batch*.json", "cnndm*.json", "edit_*.json", "comparisons/*.json")
OPENAI_SPLITS: dict[str, Split] = {"train": "train", "valid1": "heldout", "valid2": "heldout"}
PROMPTS = Dataset(
    title="TL;DR posts",
    option="task.data_dir",
    remedy="train.jsonl and valid.jsonl of OpenAI's tldr_3_filtered, or a download of one of the "
    "datasets trl-lib/tldr and"
    " vwxyzjn/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1706381144 from the "
    "Hugging Face Hub, whose"
    " parquet files are in data/",
    splits={"train": ("train",), "heldout": ("validation", "valid")},
    rows={"train": (116_722,), "heldout": (6_447,)},
    patterns=("tldr_3_filtered/{split}.jsonl", "datasets/tldr_3_filtered/{split}.jsonl"),
)
COMPARISONS = Dataset(
    title="comparisons of TL;DR summaries",
    option="task.comparisons_dir",
    remedy="OpenAI's batch3.json to batch22.json, or a download of one of the datasets"
    " vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144 and"
    " mnoukhov/summarize_from_feedback_oai_preprocessing_1706381144_relabel_pythia6.9b from the "
    "Hugging Face Hub",
    splits={"train": ("train",), "heldout": ("validation",)},
    rows={"train": (92_858,), "heldout": (83_802, 86_086)},  # the latter with news
    folders=("comparisons",),
)


@dataclass(frozen=True)
class Config:
    """Settings: the files. The published validation split is the held-out one."""

    data_dir: str = ""  # folder of the prompts and summaries
    comparisons_dir: str = ""  # none where empty
    cache_dir: str = ""  # of the records; array_record/ in each of the folders where empty


class Tldr(Corpus):
    """Posts with a human summary each."""

    tail = TAIL

    def kept_characters(
        self, records: Sequence[Record], count_tokens: CountTokens, limit: int
    ) -> list[int | None]:
        """Cuts each post until its prompt fits.

        Args:
          records: a batch.
          count_tokens: counts the tokens of many texts.
          limit: the most tokens of a prompt.

        Returns:
          The characters kept of each prompt, before its last line if it was cut.

        Raises:
          Refusal: for a prompt that is too long even without its post.
        """
        kept: list[int | None] = [len(record["prompt"]) for record in records]
        texts = [record["prompt"] for record in records]
        posts = {index: _post(text) for index, text in enumerate(texts)}
        while True:
            counts = dict(zip(posts, count_tokens([texts[index] for index in posts]), strict=True))
            posts = {index: posts[index] for index, count in counts.items() if count > limit}
            if not posts:
                return kept
            for index, post in posts.items():
                head = texts[index][: len(texts[index]) - len(TAIL) - len(post)]
                if not post:
                    raise Refusal(
                        f"tldr: a prompt has {counts[index]} tokens without its post; accepted: at "
                        "most max_prompt_tokens"
                        f" = {limit}: {row_files.short(head)}"
                    )
                posts[index] = post[
                    : post.rfind("\n")
                ]  # without a line break, -1: all but the last character
                texts[index] = head + posts[index] + TAIL
                kept[index] = len(head + posts[index])


def make(config: Config) -> Tldr:
    """The task of a config; Refusal names what is wrong with the files."""
    files = published_files.find(config.data_dir, PROMPTS)
    layouts = (
        _ready_layout("query", "reference_response"),
        _ready_layout("prompt", "completion"),
        Layout(("subreddit", "title", "post", "summary"), _read_post),
    )
    source = Source(
        task="tldr",
        kind="prompts",
        published=PROMPTS.rows,
        files=files,
        rows=lambda split: published_files.records(files[split], layouts),
        fields=("prompt", "reference"),
    )
    prompts = open_store(source, _root(config, config.data_dir))
    return Tldr("tldr", prompts, _comparisons(config) if config.comparisons_dir else None)


def _comparisons(config: Config) -> Store:
    """The store of comparisons. OpenAI's own files hold both splits each, all others one."""
    folder = Path(config.comparisons_dir)
    batches = [file for pattern in OPENAI_FILES for file in sorted(folder.glob(pattern))]
    files = (
        dict.fromkeys(COMPARISONS.splits, batches)
        if batches
        else published_files.find(str(folder), COMPARISONS)
    )
    layouts = (
        _pair_layout("query"),
        _pair_layout("prompt"),
        Layout(("info", "summaries", "choice"), _read_judged),
    )
    source = Source(
        task="tldr",
        kind="comparisons",
        published=COMPARISONS.rows,
        files=files,
        rows=lambda split: (
            _openai_rows(batches, split)
            if batches
            else published_files.records(files[split], layouts)
        ),
        fields=("prompt", "chosen", "rejected"),
    )
    return open_store(source, _root(config, config.comparisons_dir))


def _root(config: Config, folder: str) -> Path:
    return Path(config.cache_dir or Path(folder) / "array_record")


def _post(prompt: str) -> str:
    return prompt[prompt.index(POST) + len(POST) : -len(TAIL)]


def _prompt(subreddit: str, title: str, post: str) -> str:
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}{POST}{post}{TAIL}"


def _ready(location: str, row: Row, key: str) -> str:
    """A prompt that is published ready. Raises Refusal unless it has the form that can be cut."""
    prompt = row_files.text(location, row, key)
    if POST not in prompt or not prompt.endswith(TAIL):
        raise Refusal(
            f"{location}: {key!r} is {row_files.short(prompt)}; accepted: a text with {POST!r} that "
            f"ends in {TAIL!r}"
        )
    return prompt


def _read_post(location: str, row: Row) -> Record:
    subreddit, title, post = (
        row_files.text(location, row, key, empty=True) for key in ("subreddit", "title", "post")
    )
    return {
        "prompt": _prompt(subreddit, title, post),
        "reference": " " + _completion(location, row, "summary"),
    }


def _ready_layout(prompt: str, completion: str) -> Layout:
    def read(location: str, row: Row) -> Record:
        return {
            "prompt": _ready(location, row, prompt),
            "reference": _completion(location, row, completion),
        }

    return Layout((prompt, completion), read)


def _completion(location: str, row: Row, key: str) -> str:
    """A field without the EOS texts at its end. Raises Refusal if nothing remains."""
    text = conversations.without_eos(row_files.text(location, row, key), EOS)
    if not text.strip():
        raise Refusal(
            f"{location}: {key!r} is {row_files.short(row[key])}; accepted: a text that is not empty "
            "before its EOS"
        )
    return text


def _pair(prompt: str, chosen: str, rejected: str) -> Record | None:
    """The record of a comparison; None for two equal texts."""
    return (
        None if chosen == rejected else {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    )


def _pair_layout(prompt: str) -> Layout:
    """The layout of chosen and rejected texts. `prompt_chosen` is not read, because relabelled
    files swap only the former two.
    """

    def read(location: str, row: Row) -> Record | None:
        return _pair(
            _ready(location, row, prompt),
            *(_completion(location, row, key) for key in ("chosen", "rejected")),
        )

    return Layout((prompt, "chosen", "rejected"), read)


def _read_judged(location: str, row: Row) -> Record | None:
    """The record of a row of OpenAI's, with two summaries and the index of the preferred one; None
    for a row about a news article.
    """
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    pair = (
        isinstance(summaries, list)
        and len(summaries) == 2
        and all(isinstance(each, dict) for each in summaries)
    )
    if not isinstance(info, dict) or not pair or choice not in (0, 1):
        raise Refusal(
            f"{location}: found info {row_files.short(info)}, summaries {row_files.short(summaries)}, "
            f"choice {row_files.short(choice)}; accepted: a post, two summaries, and 0 or 1"
        )
    if info.get("article"):
        return None
    post = (
        row_files.text(location, info, key, empty=True) for key in ("subreddit", "title", "post")
    )
    texts = [_completion(location, summary, "text") for summary in summaries]
    return _pair(_prompt(*post), texts[choice], texts[1 - choice])


def _openai_rows(files: Sequence[Path], split: Split) -> Rows:
    """Yields the rows of OpenAI's files whose column `split` is of this split."""
    for file in files:
        for location, row in row_files.read(file, ("info", "summaries", "choice", "split")):
            if row["split"] not in OPENAI_SPLITS:
                raise Refusal(
                    f"{location}: 'split' is {row_files.short(row['split'])}; accepted: "
                    f"{', '.join(OPENAI_SPLITS)}"
                )
            if OPENAI_SPLITS[row["split"]] == split:
                yield location, _read_judged(location, row)
