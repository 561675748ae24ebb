"""The pages on models of three sizes from invented results."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import results
from experiments.studies import model_sizes
from rlhf_jax.sweeps import cells

from . import invented
from .invented import pages_of

ROOT = Path(__file__).parents[2]
ROLES = {"policy_size": "policy", "reward_size": "reward"}


def of_reward_model(line):
    """What a cell has of its reward model: a wider one has a smaller spread."""
    size = int((line["reward"] or "width 64").split()[1])
    return line | {
        "reward_model": {"heldout_accuracy": 0.6 + size / 1000, "raw_std": 2.0},
        "measured": {"within_prompt_std": [32 / size + line["seed"] / 100] * 64},
    }


@pytest.fixture(scope="module", params=list(ROLES))
def part(request):
    return request.param


@pytest.fixture(scope="module")
def lines(part):
    return lines_of(part)


def lines_of(part):
    return [of_reward_model(line) for line in invented.lines_of(part)]


def test_groups_have_the_width_of_their_role(part, lines):
    found = model_sizes.by_width(lines, ROLES[part])
    assert list(found) == [32, 64, 128]
    for wide, group in found.items():
        assert group.values == [1, 2, 4, 16, 64]
        names = {run[ROLES[part]] for runs in group.arms.values() for run in runs}
        assert names == {f"width {wide}"}


def test_a_contrast_is_the_widest_drop_minus_the_narrowest(part, lines):
    found = model_sizes.by_width(lines, ROLES[part])

    def end(wide, count, seed):
        (rate,) = [
            run["curve"][-1]["win_rate"] for run in found[wide].arms[count] if run["seed"] == seed
        ]
        return rate

    contrasts = model_sizes.primary_contrasts(found)
    assert len(contrasts) == 2
    for contrast, count in zip(contrasts, (16, 64), strict=True):
        assert contrast.values == pytest.approx(
            {
                seed: (end(128, 1, seed) - end(128, count, seed))
                - (end(32, 1, seed) - end(32, count, seed))
                for seed in range(5)
            }
        )


def test_the_page_says_it_and_the_pictures_are_there(part, lines):
    pages = pages_of(part, lines)
    assert set(pages) == {f"{part}.md", f"{part}_ends.png", f"{part}_kl.png"}
    text = pages[f"{part}.md"]
    assert len(re.findall(r"^\| \d\. drop at width 128 − drop at width 32", text, re.M)) == 2
    assert "smaller" not in text


def test_a_smaller_drop_of_wide_models_is_found(part, lines):
    """The narrow ones lose 0.08 more at 64 minibatches."""

    def lowered(line):
        last = line["curve"][-1]
        return line | {"curve": [*line["curve"][:-1], last | {"win_rate": last["win_rate"] - 0.08}]}

    lower = [
        lowered(line)
        if line[ROLES[part]] == "width 32" and line["schedule"]["num_minibatches"] == 64
        else line
        for line in lines
    ]
    first, second = re.findall(r"^\| \d\. drop at .*$", pages_of(part, lower)[f"{part}.md"], re.M)
    assert second.endswith("| smaller |")
    assert "smaller" not in first


def test_the_spread_of_a_reward_model_is_in_its_deviations():
    text = pages_of("reward_size", lines_of("reward_size"))["reward_size.md"]
    rows = re.findall(r"^\| (\d+) \| 0\.(\d+) ± [^|]* \| (\S+) ± ", text, re.M)
    assert rows == [("32", "632", "0.51"), ("64", "664", "0.26"), ("128", "728", "0.14")]


def test_a_later_key_at_its_older_value_names_the_same_stages(monkeypatch):
    """Cells whose reward model is of another variant are found again after a key is added."""
    monkeypatch.chdir(ROOT)
    study = cells.load(results.STUDIES["policy_size"])

    def digest(change):
        def base_config():
            config = study.base_config()
            change(config)
            return config

        return cells.Cells(replace(study, base=base_config))._digest_of_stages(0, "width 64")

    def unknown(config):
        del config.lengths.prompt_buckets

    def more(config):
        config.lengths.prompt_buckets = 2

    assert digest(lambda config: None) == digest(unknown)
    assert digest(lambda config: None) != digest(more)
