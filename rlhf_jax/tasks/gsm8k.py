r"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems whose solutions end in `#### number`,
judged by that number.

The prompt is that of asynchronous RLHF (Noukhovitch et al. 2024, arXiv 2410.18252), and a reference
is what its policy was fine-tuned on (Rho-1B by Kazemnejad et al. 2024, arXiv 2410.01679): a new
line, the solution without the marks of the calculator, a new line.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.corpora import published_files, row_files
from rlhf_jax.tasks.corpora.corpus import Corpus
from rlhf_jax.tasks.corpora.published_files import Dataset, Layout, Record
from rlhf_jax.tasks.corpora.record_store import Source, Store, open_store

PROBLEM, SOLUTION = "[MATH_TASK] Problem:\n", "\n\nSolution:"
ANSWER = re.compile(
    r"#### (\-?[0-9\.\,]+)([^\n]*)"
)  # of the published grader, and the rest of the line
PLAIN = re.compile(r"-?[0-9]*\.?[0-9]+")  # without commas
GROUPED = re.compile(r"-?[0-9,]*[0-9](\.[0-9]+)?")  # commas are before the decimal point
DECIMAL_COMMA = re.compile(r",[0-9]{1,2}$")  # 1,5 or 12,50: no thousands
CALCULATOR = re.compile(r"<<.*?>>", re.DOTALL)
DATASET = Dataset(
    title="GSM8K",
    option="task.data_dir",
    remedy="train.jsonl and test.jsonl of OpenAI's repository grade-school-math, or a download of "
    "the dataset"
    " openai/gsm8k from the Hugging Face Hub, whose parquet files are in main/",
    splits={"train": ("train",), "heldout": ("test",)},
    rows={"train": (7_473,), "heldout": (1_319,)},
    folders=("main",),
    patterns=("grade_school_math/data/{split}.jsonl",),
)


@dataclass(frozen=True)
class Config:
    """Settings: the files, and the text around and in a solution."""

    data_dir: str = ""  # folder of the published files
    cache_dir: str = ""  # of the records; <data_dir>/array_record where empty
    calculator: bool = False  # keep the marks <<48/2=24>>
    before: str = "\n"  # text before a solution
    after: str = "\n"  # text after it


class GSM8K(Corpus):
    """The published test split is the held-out one.

    A judge reads the number and asks for no EOS.
    """

    verifiable = True
    has_gold = True

    def __init__(self, store: Store):
        super().__init__("gsm8k", store)
        self._store = store
        self._numbers: dict[str, str] = {}

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        """Returns 1.0 if the first number after `####` is that of the answer, else 0.0. Numbers are
        compared as text without commas.

        Text before the problem, such as a BOS, is ignored. Raises Refusal for a prompt of another
        task.
        """
        del finished
        if not self._numbers:
            self._numbers = {
                _problem(record["prompt"]): number(record["reference"])
                for records in self._store.splits.values()
                for record in records
            }
        problem = _problem(prompt)
        if problem not in self._numbers:
            raise Refusal(f"{prompt!r} is not a prompt of gsm8k")
        return float(number(completion) == self._numbers[problem])


def number(solution: str) -> str:
    """Returns the number after the first `####` of a solution, as text without commas; "" if there
    is none.

    The rest of the line must not belong to the number: 1/2, 12 500, 1.234,50, 12-15, 1e5 and 12k
    are no numbers here. The published grader reads 1, 12, 1.23450, 12, 1 and 12. Units after a space
    and marks are ignored, as by the grader.
    """
    match = ANSWER.search(solution)
    if match is None:
        return ""
    digits, rest = match[1], match[2]
    letter = next((character for character in rest if character.isalnum()), "")
    goes_on = letter.isnumeric() or rest[:1].isalnum()
    grouped = "," not in digits or GROUPED.fullmatch(digits.rstrip(","))
    plain = digits.replace(",", "")
    return plain if not goes_on and grouped and PLAIN.fullmatch(plain) else ""


def answer(solution: str) -> str:
    """Returns the number of a reference as `number` does, but "" if anything else is on its line,
    or the solution has a second `####`.
    """
    matches = ANSWER.findall(solution)
    if (
        len(matches) != 1
        or solution.count("####") != 1
        or matches[0][1].strip()
        or DECIMAL_COMMA.search(matches[0][0])
    ):
        return ""
    return number(solution)


def make(config: Config) -> GSM8K:
    """The task of a config; Refusal names what is wrong with the files."""
    files = published_files.find(config.data_dir, DATASET)

    def read(location: str, row: row_files.Row) -> Record:
        question, solution = (
            row_files.text(location, row, "question"),
            row_files.text(location, row, "answer"),
        )
        if not answer(solution):
            shown = row_files.short(
                solution[solution.rfind("####") :] if "####" in solution else solution
            )
            raise Refusal(
                f"{location}: 'answer' has no '#### number': {shown}; accepted: one such line, and on "
                "it nothing but a number in"
                " digits, as -1,234.5"
            )
        solution = solution if config.calculator else CALCULATOR.sub("", solution)
        return {
            "prompt": PROBLEM + question + SOLUTION,
            "reference": config.before + solution + config.after,
        }

    source = Source(
        task="gsm8k",
        kind="prompts",
        published=DATASET.rows,
        files=files,
        rows=lambda split: published_files.records(
            files[split], [Layout(("question", "answer"), read)]
        ),
        fields=("prompt", "reference"),
        recipe=(str(config.calculator), config.before, config.after),
    )
    return GSM8K(
        open_store(source, Path(config.cache_dir or Path(config.data_dir) / "array_record"))
    )


def _problem(prompt: str) -> str:
    """The problem of a prompt without white space around it, which some tokenizers lose."""
    return prompt.strip().removesuffix(SOLUTION).rpartition(PROBLEM)[2].strip()
