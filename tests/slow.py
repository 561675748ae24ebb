"""Tests that take long, and for each a quicker test of the same kind.

`pytest` leaves the long ones out; `pytest -m slow` runs them. A test that is named with `::` runs in
any case. `.ci/run` has a limit of time: it runs the quick ones, and then as many of the long ones
as it has time for (`--begin-within`), each time from another file on (`--first-file`).
"""

import time
from collections.abc import Sequence

import pytest

FORMS = "tests/models/test_stacking.py::test_training_and_scoring_do_not_depend_on_the_form"
SLOW = {
    "tests/runtime/test_stacked.py::": (
        "tests/models/test_stacking.py::test_a_prompt_run_once_does_not_depend_on_the_form"
    ),
    **{f"{FORMS}[{name}]": f"{FORMS}[gemma3]" for name in ("gemma2", "olmo3", "smollm3")},
    **{
        f"{FORMS}[{name}]": f"{FORMS}[llama]"
        for name in ("mistral", "olmo2", "phi3", "qwen2", "qwen3")
    },
    "tests/algorithms/test_battery.py::test_presets_compiled[": (
        "tests/algorithms/test_battery.py::test_battery[policy_gradient-compiles]"
    ),
    "tests/devices/test_distributed.py::test_four_processes_train_as_one": (
        "tests/devices/test_distributed.py::test_two_processes_with_slices_and_threads_train_as_one"
    ),
    "tests/devices/test_distributed.py::"
    "test_killing_one_process_ends_all_with_a_message_within_a_minute[copies]": (
        "tests/devices/test_distributed.py::"
        "test_killing_one_process_ends_all_with_a_message_within_a_minute[one_copy]"
    ),
    "tests/devices/test_reallocate.py::test_every_bit_of_a_bfloat16_arrives[all-": (
        "tests/devices/test_reallocate.py::test_every_bit_of_a_bfloat16_arrives[normal-"
    ),
    "tests/face/test_calls.py::test_a_round_is_that_of_the_compiled_program[2-": (
        "tests/face/test_calls.py::test_a_round_is_that_of_the_compiled_program[1-"
    ),
    "tests/planner/test_analytic.py::"
    "test_bytes_of_a_layer_with_remat_are_those_of_the_compiled_program": (
        "tests/planner/test_analytic.py::test_remat_trades_seconds_for_activations"
    ),
    "tests/stages/test_resuming.py::test_checkpoints_of_either_form_go_on_in_the_other": (
        "tests/records/test_layer_forms.py::test_a_checkpoint_is_read_in_either_form"
    ),
    "tests/models/test_remat.py::test_an_update_keeps_less[four layers]": (
        "tests/models/test_remat.py::test_an_update_keeps_less[eight layers in a scan]"
    ),
    "tests/planner/test_tpu_compile.py::": (
        "tests/ops/test_sharded_logprobs.py::"
        "test_the_kernel_is_gathered_once_and_its_gradient_reduced_once"
    ),
    "tests/studies/test_learning_rate_scale_study.py::test_a_yoked_run_has_the_factors_of_the_other": (
        "tests/studies/test_learning_rate_scale_study.py::test_controls_are_derived_from_the_scaled"
    ),
    "tests/sweeps/test_study_values.py::test_cells_that_agree": (
        "tests/sweeps/test_shared_stages.py::test_prompt_values_are_shared_where_an_algorithm_needs_them"
    ),
    "tests/studies/test_staleness_study.py::test_a_cell_records_every_round": (
        "tests/studies/test_staleness_study.py::test_a_round_is_measured_by_whole_rows"
    ),
    "tests/runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[1-": (
        "tests/runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[0-"
    ),
    "tests/runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[2-": (
        "tests/runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[0-"
    ),
    "tests/runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[3-": (
        "tests/runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[0-"
    ),
    "tests/runtime/test_inflight.py::test_random_bounded_schedules_stay_in_the_bound_and_are_replayed[1]": (
        "tests/runtime/test_inflight.py::test_random_bounded_schedules_stay_in_the_bound_and_are_replayed[0]"
    ),
    "tests/runtime/test_inflight.py::test_random_bounded_schedules_stay_in_the_bound_and_are_replayed[2]": (
        "tests/runtime/test_inflight.py::test_random_bounded_schedules_stay_in_the_bound_and_are_replayed[0]"
    ),
    "tests/runtime/test_inflight.py::test_random_bounded_schedules_stay_in_the_bound_and_are_replayed[3]": (
        "tests/runtime/test_inflight.py::test_random_bounded_schedules_stay_in_the_bound_and_are_replayed[0]"
    ),
    "tests/runtime/test_plans.py::test_a_plan_trains_to_the_params_of_one_mesh[plan0-ppo-": (
        "tests/runtime/test_plans.py::test_a_plan_trains_to_the_params_of_one_mesh[plan2-ppo-"
    ),
    "tests/runtime/test_plans.py::test_a_plan_trains_to_the_params_of_one_mesh[plan1-ppo-": (
        "tests/runtime/test_plans.py::test_a_plan_trains_to_the_params_of_one_mesh[plan2-ppo-"
    ),
    "tests/slots/test_round.py::test_every_family_is_sampled_alike[": (
        "tests/slots/test_round.py::test_windows_and_caps_are_sampled_alike"
    ),
    "tests/stages/test_dpo.py::test_a_stopped_run_ends_as_one_that_never_was[5]": (
        "tests/stages/test_dpo.py::test_a_stopped_run_ends_as_one_that_never_was[2]"
    ),
    "tests/stages/test_dpo.py::"
    "test_given_comparisons_are_learned_without_reward_or_judge[sigmoid]": (
        "tests/stages/test_dpo.py::test_given_comparisons_are_learned_without_reward_or_judge[ipo]"
    ),
    "tests/stages/test_inflight.py::test_a_run_in_threads_goes_on_as_the_simulated_one[1]": (
        "tests/stages/test_inflight.py::test_a_run_in_threads_goes_on_as_the_simulated_one[0]"
    ),
    "tests/stages/test_inflight.py::test_a_run_in_threads_goes_on_as_the_simulated_one[adapters]": (
        "tests/stages/test_inflight.py::test_a_run_in_threads_goes_on_as_the_simulated_one[0]"
    ),
    "tests/stages/test_inflight.py::test_rounds_through_slots_have_the_lag_of_the_clock": (
        "tests/stages/test_inflight.py::test_a_run_in_threads_goes_on_as_the_simulated_one[0]"
    ),
    "tests/stages/test_inflight.py::test_a_schedule_is_replayed_to_the_same_bits": (
        "tests/runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[0-"
    ),
    "tests/stages/test_kill.py::test_six_kills_change_nothing": (
        "tests/stages/test_kill.py::test_the_synchronous_loop_is_killed_too"
    ),
    "tests/stages/test_clocks.py::test_a_buffer_goes_on_from_any_checkpoint[1]": (
        "tests/stages/test_clocks.py::test_a_buffer_goes_on_from_any_checkpoint[3]"
    ),
    "tests/stages/test_clocks.py::test_a_buffer_goes_on_from_any_checkpoint[6]": (
        "tests/stages/test_clocks.py::test_a_buffer_goes_on_from_any_checkpoint[3]"
    ),
    "tests/stages/test_clocks.py::test_rounds_are_kept_as_long_as_their_window": (
        "tests/records/test_saved_rounds.py::test_every_checkpoint_keeps_its_rounds"
    ),
    "tests/stages/test_kill.py::test_three_kills_of_a_buffered_run": (
        "tests/stages/test_clocks.py::test_a_buffer_goes_on_from_any_checkpoint[3]"
    ),
    "tests/stages/test_kill.py::test_preemption_of_the_threads": (
        "tests/stages/test_kill.py::test_an_interrupted_run_says_so_and_goes_on"
    ),
    "tests/stages/test_kill.py::test_offline_dpo_killed_before": (
        "tests/stages/test_dpo.py::test_a_stopped_run_ends_as_one_that_never_was[2]"
    ),
    "tests/stages/test_own_rewards.py::test_a_command_that_hangs_ends_at_its_deadline[Recorder-": (
        "tests/stages/test_own_rewards.py::test_a_command_that_hangs_ends_at_its_deadline[Program-"
    ),
    "tests/stages/test_resuming.py::test_a_run_that_cannot_grow_is_refused_with_the_fork[every]": (
        "tests/stages/test_resuming.py::test_a_run_that_cannot_grow_is_refused_with_the_fork[keep]"
    ),
    "tests/stages/test_reward_model.py::"
    "test_it_is_trained_on_and_its_unit_measured_again[damage]": (
        "tests/stages/test_reward_model.py::"
        "test_it_is_trained_on_and_its_unit_measured_again[remove]"
    ),
    "tests/stages/test_reward_model.py::test_it_is_trained_on_and_its_unit_measured_again[spoil]": (
        "tests/stages/test_reward_model.py::"
        "test_it_is_trained_on_and_its_unit_measured_again[remove]"
    ),
    "tests/stages/test_kill.py::test_a_bounded_run_that_was_killed_is_repeated_by_its_ledger": (
        "tests/docs/test_pages.py::test_a_page_runs_as_it_is_printed[docs/scale/inflight.md]"
    ),
    "tests/studies/test_offpolicyness_study.py::test_four_cells_run_and_are_not_run_again": (
        "tests/third_party/test_commands.py::test_a_sweep_of_them_runs_ends_and_is_read_again"
    ),
    "tests/devices/test_distributed.py::test_started_again_the_pipeline_ends_as_one_process_does": (
        "tests/devices/test_distributed.py::test_two_processes_with_slices_and_threads_train_as_one"
    ),
    "tests/stages/test_beginning.py::test_from_the_sft_policy_the_same_run_comes_again": (
        "tests/stages/test_beginning.py::test_other_settings_may_be_chosen"
    ),
    "tests/studies/test_offpolicyness_study.py::test_a_worker_that_fails_is_named_with_its_last_line": (
        "tests/third_party/test_commands.py::test_a_sweep_of_them_runs_ends_and_is_read_again"
    ),
    "tests/test_bench_matrix.py::test_the_index_is_of_today_for_all_recipes[": (
        "tests/test_bench_matrix.py::test_the_index_is_of_today"
    ),
    "tests/studies/test_inflight_studies.py::test_a_rebuilt_cache_has_no_gap_and_a_kept_one_has": (
        "tests/studies/test_inflight_studies.py::test_few_mixed_rows_are_told"
    ),
    "tests/studies/test_inflight_studies.py::test_a_matched_run_is_as_old_as_the_tokens_in_flight": (
        "tests/studies/test_inflight_studies.py::test_a_matched_schedule_has_the_ages_in_sum"
    ),
    "tests/test_notebooks.py::test_notebook[03": "tests/test_notebooks.py::test_notebook[01",
    "tests/test_notebooks.py::test_notebook[04": "tests/test_notebooks.py::test_notebook[01",
    "tests/test_notebooks.py::test_notebook[05": "tests/test_notebooks.py::test_notebook[01",
} | {
    f"tests/{name}": f"tests/{quicker}"
    for quicker, names in {
        "runtime/test_inflight_programs.py::"
        "test_threads_give_the_numbers_of_the_simulated_loop_of_every_algorithm[grpo]": [
            "runtime/test_inflight_programs.py::"
            f"test_threads_give_the_numbers_of_the_simulated_loop_of_every_algorithm[{name}]"
            for name in (
                "a2po",
                "best_of_group",
                "best_of_n",
                "constant_gain",
                "copg",
                "dr_grpo",
                "gopo",
                "grpovi",
                "matched_std",
                "oapl",
                "online_ipo",
                "pmd",
                "policy_gradient",
                "ppo",
                "rloo",
            )
        ],
        "runtime/test_inflight_programs.py::test_adapters_are_drawn_in_flight_on_one_base": [
            "runtime/test_inflight_programs.py::test_adapters_of_four_roles_are_drawn_in_flight"
        ],
        "test_recipes.py::test_debug_runs_end_to_end[tldr/online_dpo]": [
            f"test_recipes.py::test_debug_runs_end_to_end[{recipe}]"
            for recipe in (
                "tldr/ppo",
                "tldr/best_of_n",
                "tldr/rloo",
                "gsm8k/ppo",
                "no_robots/online_dpo",
                "ultrafeedback/grpovi",
            )
        ],
        "models/test_remat.py::test_gradients_and_values_are_those_without[llama]": [
            f"models/test_remat.py::test_gradients_and_values_are_those_without[{family}]"
            for family in ("olmo2", "olmo3", "smollm3", "qwen2", "qwen3", "mistral", "phi3")
        ],
        "face/test_calls.py::test_a_round_is_that_of_the_compiled_program[1-grpo-settings0]": [
            f"face/test_calls.py::test_a_round_is_that_of_the_compiled_program[1-{case}]"
            for case in ("grpo-settings1", "ppo-settings3", "copg-settings4")
        ],
        "test_recipes.py::test_debug_runs_end_to_end[gsm8k/rloo]": [
            "test_recipes.py::test_debug_runs_end_to_end[gsm8k/online_dpo]"
        ],
        "stages/test_oversample.py::test_the_ledger_has_each_sampled_prompt_once": [
            "test_recipes.py::test_debug_runs_end_to_end[gsm8k/dapo]"
        ],
        "docs/test_pages.py::test_a_page_runs_as_it_is_printed[docs/guides/resume.md]": [
            f"docs/test_pages.py::test_a_page_runs_as_it_is_printed[docs/{page}.md]"
            for page in (
                "guides/lora",
                "guides/offline_dpo",
                "guides/sweeps",
                "guides/tracking",
                "guides/your_data",
                "guides/your_reward",
                "guides/configure",
                "guides/compare",
                "guides/from_other_libraries",
                "scale/plans",
            )
        ],
    }.items()
    for name in names
}
"""Beginnings of the names of long tests, each with that of a quicker test of the same kind."""


FIRST = (
    "tests/devices/test_distributed.py",
    "tests/stages/test_kill.py",
    "tests/run_directory/test_changes.py",
    "tests/docs/test_pages.py",
    "tests/third_party/test_batteries.py",
    "tests/stages/test_resuming.py",
    "tests/face/test_calls.py",
    "tests/test_recipes.py",
    "tests/models/test_battery.py",
    "tests/algorithms/test_battery.py",
    "tests/stages/test_beginning.py",
    "tests/third_party/test_commands.py",
    "tests/studies/test_offpolicyness_study.py",
    "tests/stages/test_dpo.py",
    "tests/stages/test_plans.py",
    "tests/test_notebooks.py",
)
"""Files that take longest, the longest first. A process that begins one of them last would run on
alone while the others wait.
"""


def is_slow(name: str) -> bool:
    """True for the name of a long test."""
    return any(name.startswith(slow) for slow in SLOW)


STARTED = time.monotonic()


def add_options(parser: pytest.Parser) -> None:
    """Adds the options for a part of the long tests."""
    parser.addoption(
        "--begin-within",
        type=float,
        metavar="SECONDS",
        help="skip the tests that would begin later than this many seconds after the start",
    )
    parser.addoption(
        "--first-file",
        type=int,
        metavar="N",
        help="begin with the N-th file, modulo their number, and go on from it in a circle",
    )


def skip_when_late(config: pytest.Config) -> None:
    """Skips the test that is about to begin where the time of `--begin-within` has passed."""
    limit = config.getoption("--begin-within")
    if limit is not None and time.monotonic() - STARTED > limit:
        pytest.skip(f"not begun within {limit:g} s of the start")


def order(items: list[pytest.Item], first_file: int | None = None) -> None:
    """Puts the tests of the files that take longest first; all else stays in its order.

    Args:
      items: tests, in the order of their files.
      first_file: number of the file to begin with, modulo their number, and to go on from in
        a circle; None: the order by length.
    """
    files = list(dict.fromkeys(_file(item) for item in items))
    place = {file: index for index, file in enumerate(FIRST)}
    if first_file is not None and files:
        place = {file: (index - first_file) % len(files) for index, file in enumerate(files)}
    items.sort(key=lambda item: place.get(_file(item), len(FIRST)))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def mark(config: pytest.Config, items: list[pytest.Item], whole: bool) -> None:
    """Marks long tests, and leaves them out where the command line does not ask for them.

    Args:
      config: of the tests.
      items: that are collected; those that are left out are removed.
      whole: True where they are the whole suite.

    Raises UsageError where the whole suite is collected and a name of the list is of no test, or
    its quicker test is none or is slow too.
    """
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker(pytest.mark.slow)
    if whole:
        check([item.nodeid for item in items])
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if is_slow(item.nodeid)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not is_slow(item.nodeid)]


def check(names: Sequence[str]) -> None:
    """Raises UsageError for a name of the list that is of none of the tests' `names`."""
    quick = [name for name in names if not is_slow(name)]
    files = {name.partition("::")[0] for name in names}
    for file in FIRST:
        if file not in files:
            raise pytest.UsageError(f"tests/slow.py names {file!r}, which has no test")
    for slow, quicker in SLOW.items():
        if not any(name.startswith(slow) for name in names):
            raise pytest.UsageError(f"tests/slow.py names {slow!r}, which is no test")
        if not any(name.startswith(quicker) for name in quick):
            raise pytest.UsageError(
                f"tests/slow.py names {quicker!r}, which is no quick test, beside {slow!r}"
            )
