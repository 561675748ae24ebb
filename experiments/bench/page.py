"""Writes the page of benchmarks, `docs/results/benchmarks.md`, from the committed JSON lines of
`results/`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.bench.estimates import Points
from experiments.bench.estimates import draw as draw_estimates
from experiments.studies.markdown import fill, number, table

RESULTS = Path(__file__).parent / "results"
Case = Mapping[str, Any]


def read(name: str) -> dict[str, Any]:
    """A benchmark's JSON line."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def cases(name: str, wanted: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    return [case for case in read(name)["cases"] if wanted(case)]


def source(name: str) -> str:
    """A sentence with the command, the machine and its load; ratios of a busy machine are
    indicative.
    """
    result = read(name)
    machine = result["machine"]
    load = result.get("load_average")
    busy = (
        f", load average {load['began'][0]:.0f} to {load['ended'][0]:.0f}"
        if load
        else ", load average not recorded"
    )
    return f"`{result['command']}`; {machine['cores']} cores of an {machine['processor']}{busy}."


def seconds(value: float) -> str:
    return f"{value:.3g}"


def peers() -> str:
    """A row for each case that was run beside a peer: minima on both sides."""
    rows = []
    for name, peer, label in (
        ("generate", "transformers", "generate of transformers"),
        ("dpo_update", "torch", "plain PyTorch loop"),
        ("online_dpo_round", "trl", "OnlineDPOTrainer of TRL"),
    ):
        for case in cases(name):
            ours, theirs = case["rlhf_jax_seconds"], case[f"{peer}_seconds"]
            memory = [
                case.get(key)
                for key in (
                    "rlhf_jax_peak_megabytes",
                    "rlhf_jax_cached_peak_megabytes",
                    f"{peer}_peak_megabytes",
                )
            ]
            megabytes = " / ".join(f"{value:.0f}" for value in memory) if all(memory) else "–"
            rows.append(
                [
                    f"{name}, {case['case']}",
                    label,
                    seconds(ours),
                    seconds(theirs),
                    f"{theirs / ours:.2f}",
                    megabytes,
                ]
            )
    return table(
        (
            "work",
            "peer",
            "ours, s",
            "peer, s",
            "times as fast",
            "peak MB: first start / cached / peer",
        ),
        rows,
    )


def algorithms() -> str:
    """A row for each algorithm's update on one round of the quickstart."""
    rows = [
        [case["case"], str(case["rows"]), seconds(case["update_seconds"]), f"{case['of_grpo']:.2f}"]
        for case in cases("algorithms", lambda case: "of_grpo" in case)
    ]
    return table(("algorithm", "rows trained on", "update, s", "of GRPO's"), rows)


def adjustment_share() -> str:
    """The share of a round that GRPOVI's adjustment takes, in percent."""
    (case,) = cases("algorithms", lambda case: "adjustment_share" in case)
    return f"{100 * case['adjustment_share']:.2f} %"


def sabotage() -> str:
    rows = [
        [
            case["case"],
            number(case["gold_mean"], 2),
            number(case["win_rate"], 3),
            number(case["kl"], 2),
        ]
        for case in cases("sabotage")
    ]
    return table(("algorithm, fault", "gold at the end", "win-rate", "KL"), rows)


def speed() -> str:
    """A row for each arm of the study of speed: seconds per round, and its win-rate beside the
    first arm's.
    """
    rows = []
    for case in cases("speed"):
        difference = case.get("win_rate_difference")
        beside = "–"
        if difference:
            low, mean, high = difference
            beside = f"{number(mean, 3, signed=True)} ({number(low, 3)} to {number(high, 3)})"
        rows.append(
            [
                case["case"],
                seconds(case["seconds_a_round"]),
                f"{case['to_first_arm']:.2f}",
                f"{case['win_rate']:.3f}",
                beside,
            ]
        )
    head = (
        "arm",
        "seconds per round",
        "of the first arm's (median over seeds)",
        "win-rate",
        "win-rate − first arm (90 % interval)",
    )
    return table(head, rows)


def overlap() -> str:
    rows = [
        [case["case"], f"{case['round_of_longest']:.3f}", f"{case['ideal']:.3f}"]
        for case in cases("overlap", lambda case: "ideal" in case)
    ]
    return table(
        ("simulated stages", "round / longer stage", "the same schedule without threads"), rows
    )


def slots() -> str:
    """A row for each way to draw a round, over the static sampler and over the gathered one."""
    labels = {
        "compacted": "static, rows gathered as they end",
        "slots_1": "a slot for each row",
        "slots_4": "slots for a quarter of the rows",
        "slots_4_drained": "the same, the drain gathered",
        "slots_8": "slots for an eighth of the rows",
        "slots_8_drained": "the same, the drain gathered",
    }
    rows = [
        [
            case["case"],
            label,
            f"{case['over_static'][name]:.2f}",
            f"{case['over_compacted'][name]:.2f}",
        ]
        for case in cases("slots")
        for name, label in labels.items()
    ]
    return table(("lengths, shape", "way", "of static", "of gathered"), rows)


def kills() -> str:
    """A row for each kind of run that was killed: how many of its moments ended equal to the bit."""
    rows = []
    for name in ("kill", "kill_inflight"):
        result = read(name)
        loops = result["killed_in"].items()
        in_threads = sum(count for where, count in loops if where.endswith("=asynchronous"))
        rows.append(
            [result["job"], str(result["moments"]), str(in_threads), f"{result['equal']:d}"]
        )
    return table(("run", "kills", "of them with a sampling thread", "ended equal"), rows)


def host_kills() -> str:
    """A row for each of two processes: how often it was killed, how the other one ended, and how
    many directories ended equal to the bit.
    """
    runs = [run for run in read("kill_hosts")["runs"] if run["killed"]]
    rows = []
    for victim, label in enumerate(("the first", "the second")):
        killed = [run for run in runs if run["victim"] == victim]
        rows.append(
            [
                label,
                str(len(killed)),
                str(sum(run["loop"] == "asynchronous" for run in killed)),
                str(sum(not run["faults"] for run in killed)),
                f"{max(run['seconds'] for run in killed):.0f} s",
                str(sum(not run["differ"] for run in killed)),
            ]
        )
    columns = ("process that was killed", "kills", "of them with a sampling thread")
    ends = ("the other ended with one line", "at most after", "ended equal")
    return table((*columns, *ends), rows)


def plans_summary() -> dict[str, str]:
    """The figures of random plans and of memory, by the name of their field in the page."""
    (estimates,) = cases("plans", lambda case: case["case"] == "estimates")
    (memory,) = cases("plans", lambda case: case["case"] == "memory")
    return {
        "plans": str(estimates["plans"]),
        "median_error": f"{100 * estimates['median_error']:.1f} %",
        "largest_error": f"{100 * estimates['largest_error']:.0f} %",
        "rank_correlation": f"{estimates['rank_correlation']:.2f}",
        "memory_profiled": f"{100 * memory['profile_largest_error']:.0f} %",
        "memory_formulas": f"{100 * memory['formulas_largest_error']:.0f} %",
    }


def searched() -> str:
    """A row for each setting in which the searched plan was run beside the best single mesh."""
    rows = []
    for case in cases("plans", lambda case: case["case"] == "searched"):
        size = f"width {case['width']}, {case['num_prompts']} × {case['samples_per_prompt']} × "
        size += f"({case['prompt_tokens']} + {case['completion_tokens']}), {case['num_minibatches']} minibatches"
        rows.append(
            [
                size,
                f"{case['expected_ratio']:.2f}",
                f"{case['measured_ratio']:.2f}",
                case["advised"],
            ]
        )
    return table(
        ("setting", "expected / best single mesh", "measured / best single mesh", "advised"), rows
    )


def realhf() -> str:
    """A row for each published setting: the heuristic as published and simulated, and both searched
    plans.
    """
    heuristic = {
        case["case"]: case
        for case in cases("realhf_settings", lambda c: "paper_heuristic_seconds" in c)
    }
    found = {
        case["case"].removeprefix("search "): case
        for case in cases("realhf_settings", lambda c: "paper_searched_seconds" in c)
    }
    rows = []
    for name, case in heuristic.items():
        other = found[name]
        rows.append(
            [
                name,
                f"{case['paper_heuristic_seconds']:.1f}",
                f"{case['simulated_heuristic_seconds']:.1f}",
                f"{other['paper_searched_seconds']:.1f}",
                f"{other['simulated_searched_seconds']:.1f}",
                f"{other['search_seconds']:.0f}",
            ]
        )
    head = (
        "setting",
        "heuristic, published",
        "heuristic, simulated",
        "searched, published (measured)",
    )
    return table((*head, "searched, ours (simulated)", "our search, s"), rows)


def realhf_summary() -> str:
    """A row for each fit: settings, geometric mean, range and rank correlation of simulated /
    published seconds.
    """
    rows = []
    for case in cases("realhf_settings", lambda case: "geometric_mean_ratio" in case):
        extent = f"{case['least_ratio']:.2f} to {case['largest_ratio']:.2f}"
        rows.append(
            [
                case["case"],
                f"{case['geometric_mean_ratio']:.2f}",
                extent,
                f"{case['rank_correlation']:.2f}",
            ]
        )
    return table(("fit", "geometric mean", "range", "rank correlation"), rows)


def reallocate() -> str:
    rows = [
        [
            f"{case['preset']}, {case['case']}",
            f"{case['megabytes']:.1f}",
            f"{1000 * case['ours_seconds']:.1f}",
        ]
        + [f"{1000 * case['device_put_seconds']:.1f}", f"{case['times_faster']:.2f}"]
        for case in cases("reallocate", lambda case: "times_faster" in case)
    ]
    return table(("move", "MB", "ours, ms", "`device_put`, ms", "times as fast"), rows)


def variance_increase() -> str:
    rows = [
        [
            case["case"],
            f"{case['of_a_sort']['select']:.2f}",
            f"{case['of_a_sort']['select_weighted']:.2f}",
        ]
        for case in cases("variance_increase")
    ]
    return table(("groups × responses", "kernel / `jnp.sort`", "with weights / `jnp.sort`"), rows)


def preset_costs() -> dict[str, str]:
    """The presets whose update has most operations and bytes beside GRPO's, and the cost of the pass
    that measures gradient energies.
    """

    def largest(figure: str) -> str:
        passes = ("pass", "beside")
        found = cases("preset_costs", lambda case: not any(word in case["case"] for word in passes))
        case = max(found, key=lambda case: case[f"{figure}_of_grpo"])
        return f"{case[f'{figure}_of_grpo']:.4f} ({case['case']})"

    def pass_of(name: str) -> str:
        found = {case["case"]: case["flops_of_grpo"] for case in cases("preset_costs")}
        return " and ".join(f"{100 * found[f'{size} {name}']:.2f} %" for size in ("tiny", "head"))

    return {
        "preset_flops": largest("flops"),
        "preset_bytes": largest("bytes"),
        "energy_pass": pass_of("scoring pass: gradient energy"),
        "reference_pass": pass_of("scoring pass: log-probabilities"),
        "energy_beside": pass_of("energy beside log-probabilities"),
    }


def estimates_figure() -> Figure:
    """Expected against measured seconds of a round: random plans, and ReaLHF's 36 published
    settings.
    """
    (plans,) = cases("plans", lambda case: case["case"] == "estimates")

    def seconds(measured: str, expected: str) -> tuple[list[float], list[float]]:
        chosen = cases("realhf_settings", lambda case: measured in case)
        return [case[measured] for case in chosen], [case[expected] for case in chosen]

    random_plans = Points(
        f"{plans['plans']} random plans, profiled, on 8 virtual devices",
        {"plans": (plans["measured_seconds"], plans["expected_seconds"])},
    )
    published = Points(
        "ReaLHF's 36 settings, by formulas",
        {
            "its heuristic": seconds("paper_heuristic_seconds", "simulated_heuristic_seconds"),
            "its searched plan, beside ours": seconds(
                "paper_searched_seconds", "simulated_searched_seconds"
            ),
        },
    )
    return draw_estimates([random_plans, published])


def pages() -> dict[str, str | Figure]:
    """The files of the page by their names in `docs/results/`."""
    names: Sequence[str] = (
        "generate", "algorithms", "sabotage", "speed", "overlap", "slots", "plans", "realhf_settings",
        "reallocate", "variance_increase", "preset_costs",
    )  # fmt: skip
    text = fill(
        Path(__file__).with_name("page.md"),
        sources={name: source(name) for name in names},
        peers=peers(),
        algorithms=algorithms(),
        adjustment_share=adjustment_share(),
        sabotage=sabotage(),
        speed=speed(),
        overlap=overlap(),
        slots=slots(),
        kills=kills(),
        host_kills=host_kills(),
        searched=searched(),
        realhf=realhf(),
        realhf_summary=realhf_summary(),
        reallocate=reallocate(),
        variance_increase=variance_increase(),
        **plans_summary(),
        **preset_costs(),
    )
    return {"benchmarks.md": text, "benchmarks_plans.png": estimates_figure()}
