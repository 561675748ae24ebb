"""No Robots: 10,000 instructions and conversations with replies written by people; the chat task of
asynchronous RLHF.

Noukhovitch et al. 2024 (arXiv 2410.18252) fine-tune Llama 3.1 8B on it, with the template of Tulu.
No judge: the paper's reward is a learned one.
"""

from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.corpora import conversations, published_files, row_files
from rlhf_jax.tasks.corpora.corpus import Corpus
from rlhf_jax.tasks.corpora.published_files import Dataset, Layout, Record
from rlhf_jax.tasks.corpora.record_store import Source, open_store

DATASET = Dataset(
    title="No Robots",
    option="task.data_dir",
    remedy="a download of the dataset HuggingFaceH4/no_robots from the Hugging Face Hub, whose "
    "parquet files are in data/",
    splits={"train": ("train", "train_sft"), "heldout": ("test", "test_sft")},
    rows={"train": (9_500,), "heldout": (500,)},
)


@dataclass(frozen=True)
class Config:
    """Settings: the files, and the template that makes a prompt of a conversation. The published
    test split is the held-out one.
    """

    data_dir: str = ""  # folder of the published files
    cache_dir: str = ""  # of the records; <data_dir>/array_record where empty
    chat_template: str = "tulu"  # a name, or a file or folder: see `text/chat.py`
    bos_token: str = ""  # texts that the template may name; where empty, those that come with it
    eos_token: str = (
        ""  # Tulu's template needs it where a reply was given before: <|end_of_text|> for Llama 3.1
    )
    date: str = ""  # told to a template that asks for today's date, as 2025-01-31


def make(config: Config) -> Corpus:
    """The task of a config; Refusal names what is wrong with the files or the template."""
    files = published_files.find(config.data_dir, DATASET)
    template = conversations.template(
        config.chat_template, config.bos_token, config.eos_token, config.date
    )
    prompt = conversations.prompts(template)

    def read(location: str, row: row_files.Row) -> Record:
        context, reply = conversations.turns(location, row, "messages", template)
        if not reply:
            raise Refusal(f"{location}: the last reply of 'messages' is empty")
        return prompt(location, context) | {"reference": reply}

    source = Source(
        task="no_robots",
        kind="prompts",
        published=DATASET.rows,
        files=files,
        rows=lambda split: published_files.records(files[split], [Layout(("messages",), read)]),
        fields=("prompt", "messages", "reference"),
        recipe=conversations.recipe(template),
    )
    store = open_store(source, Path(config.cache_dir or Path(config.data_dir) / "array_record"))
    return Corpus("no_robots", store, template=template)
