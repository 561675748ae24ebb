"""Tests that take long, and for each a quicker test of the same kind.

`pytest` leaves the long ones out; `pytest -m slow` runs them. A test that is named with `::` runs in
any case. `.ci/run` has a limit of time: it runs the quick ones, and then as many of the long ones
as it has time for (`--begin-within`), each time from another file on (`--first-file`).
"""

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

import pytest

QUICK_CASES = {
    f"tests/{name}": cases
    for name, cases in {
        "algorithms/test_battery.py::test_presets": (
            "a3po-*",
            "cispo-*",
            "dapo-*",
            "dppo_tv-*",
            "geo_rs-*",
            "gspo-*",
            "m2po-*",
            "reinforce-*",
            "sapo-*",
            "token_tis-*",
            "vcpo-*",
        ),
        "algorithms/test_numbers.py::test_numbers_as_arguments_are_the_numbers_as_constants": (
            "grpo-*",
            "online_dpo-*",
            "ppo-*",
        ),
        "algorithms/test_numbers.py::test_two_values_have_the_same_programs_and_other_results": (
            "grpo-*",
            "online_dpo-*",
            "ppo-*",
        ),
        "devices/test_copies.py::test_an_update_is_that_of_one_device": ("bfloat16", "tensor"),
        "devices/test_copies.py::test_gradients_cross_hosts_once_an_update": ("bfloat16", "tensor"),
        "devices/test_distributed.py::"
        "test_killing_one_process_ends_all_with_a_message_within_a_minute": ("one_copy",),
        "devices/test_liveness.py::test_a_process_that_waits_elsewhere_ends_with_a_line": ("1",),
        "devices/test_reallocate.py::test_any_placement_to_any_other": ("?",),
        "devices/test_reallocate.py::test_every_bit_of_a_bfloat16_arrives": ("normal-*",),
        "docs/test_pages.py::test_a_page_runs_as_it_is_printed": (
            "docs/extend/algorithm.md",
            "docs/extend/batteries.md",
            "docs/guides/pretrained.md",
            "docs/guides/recipes.md",
            "docs/guides/resume.md",
            "docs/guides/smollm2.md",
            "docs/guides/troubleshooting.md",
            "docs/reference/*",
            "docs/start/*",
        ),
        "face/test_calls.py::test_a_round_is_that_of_the_compiled_program": ("1-grpo-settings0",),
        "face/test_calls.py::test_a_run_is_that_of_the_stage": ("grpo-1",),
        "models/test_adapters.py::test_a_fresh_adapter_is_bitwise_the_base": ("llama-*",),
        "models/test_adapters.py::test_the_gradient_is_the_chain_rule_from_the_merged_kernels": (
            "gpt_neox-True",
            "llama-*",
        ),
        **{
            f"models/test_battery.py::test_{name}": ("gemma3*", "gpt_neox*", "llama*")
            for name in (
                "a_prompt_in_two_pieces_is_the_full_forward",
                "bfloat16_compute_is_near_and_logits_are_float32",
                "decoding_a_token_at_a_time_is_the_full_forward",
                "gradients_are_causal_and_stop_at_the_mask",
                "left_padding_changes_nothing",
                "left_padding_moves_no_cached_key",
                "prefill_is_the_full_forward",
                "prefill_traced_with_its_empty_cache_is_the_full_forward",
                "rows_without_a_token_are_finite",
            )
        },
        "models/test_linear.py::test_eight_devices_sum_whole_gradients": (
            "passes",
            "scanned adapter",
        ),
        "models/test_int8_base.py::test_outputs_and_gradients_are_those_on_the_dequantized_base": (
            "gpt_neox-False",
            "llama-True",
        ),
        **{
            f"models/test_linear.py::test_{name}": ("passes", "scan")
            for name in (
                "each_param_is_reduced_once_a_micro_batch",
                "links_of_an_update_are_within_the_budget",
            )
        },
        "models/test_remat.py::test_gradients_and_values_are_those_without": ("gemma3", "llama"),
        "models/test_rounding.py::test_every_family_computes_the_same_bits_from_held_params": (
            "gemma3",
            "gpt_neox",
            "llama",
        ),
        "models/test_stacking.py::test_training_and_scoring_do_not_depend_on_the_form": (
            "gemma3",
            "gpt_neox",
            "llama",
        ),
        "models/test_transformers.py::test_a_written_config_builds_the_same_model_in_transformers": (
            "gemma3, cap and head",
            "gpt_neox",
            "llama",
            "phi3, longrope",
            "qwen3",
        ),
        "models/test_transformers.py::test_logits_are_those_of_transformers": (
            "gemma3, cap and head",
            "gpt_neox",
            "llama",
            "phi3, longrope",
            "qwen3",
        ),
        "models/test_transformers.py::test_logits_with_a_cache_are_those_of_transformers": (
            "gemma3",
            "gpt_neox",
            "llama",
        ),
        "ops/test_sharded_logprobs.py::test_numbers_are_those_of_one_device": (
            "shape1-*",
            "shape2-*",
        ),
        "planner/test_analytic.py::test_bytes_are_those_of_the_compiled_program": ("*-2x2x2",),
        "runtime/test_int8_base.py::test_sharded_is_single": ("shape2",),
        "runtime/test_int8_base.py::test_temporaries_hold_a_dequantized_kernel_and_not_the_base": (
            "generate",
            "reference",
        ),
        "pretrained/test_export.py::test_what_came_in_goes_out": (
            "gemma3-*",
            "gpt_neox-*",
            "llama-*",
        ),
        "report/test_curves.py::test_no_label_is_cut_off_or_lies_on_another": (
            "1.0-config0",
            "-123456.0-*",
        ),
        "runtime/test_adapters.py::test_sharded_is_single": ("shape2",),
        "runtime/test_asynchronous.py::test_threads_give_the_synchronous_numbers_of_every_algorithm": (
            "grpo",
            "ppo",
            "rloo",
        ),
        "runtime/test_bounded.py::test_random_schedules_stay_in_the_bound_and_can_be_replayed": (
            "[0-3]",
        ),
        "runtime/test_inflight.py::test_threaded_is_simulated_is_replayed": ("0-*",),
        "runtime/test_inflight_slices.py::test_threaded_is_simulated_is_replayed": ("1-2",),
        "runtime/test_inflight_slices.py::"
        "test_a_run_that_is_killed_and_goes_on_is_one_that_was_not": ("exact-2",),
        "runtime/test_inflight.py::"
        "test_random_bounded_schedules_stay_in_the_bound_and_are_replayed": ("0",),
        "runtime/test_inflight_programs.py::"
        "test_threads_give_the_numbers_of_the_simulated_loop_of_every_algorithm": ("grpo",),
        "runtime/test_plans.py::test_a_plan_trains_to_the_params_of_one_mesh": ("plan2-ppo-*",),
        "runtime/test_scalars.py::test_all_values_have_the_same_credit_and_updates": (
            "grpo",
            "online_dpo",
            "ppo",
        ),
        "stages/test_clocks.py::test_a_buffer_goes_on_from_any_checkpoint": ("3",),
        "stages/test_dpo.py::test_a_stopped_run_ends_as_one_that_never_was": ("2",),
        "stages/test_dpo.py::test_given_comparisons_are_learned_without_reward_or_judge": ("ipo",),
        "stages/test_inflight.py::test_a_run_in_threads_goes_on_as_the_simulated_one": ("0",),
        "stages/test_inflight.py::test_slices_in_threads_go_on_as_the_simulated_loop": ("keep",),
        "stages/test_own_rewards.py::test_a_command_that_hangs_ends_at_its_deadline": (
            "Program-*",
        ),
        "stages/test_resuming.py::test_a_run_that_cannot_grow_is_refused_with_the_fork": ("keep",),
        "stages/test_reward_model.py::test_it_is_trained_on_and_its_unit_measured_again": (
            "remove",
        ),
        "test_bench_fits.py::test_a_recipe_fits_on_the_devices_that_it_names": (
            "configs/no_robots/online_dpo.py",
            "configs/tldr/ppo.py:size=2.8b",
            "configs/ultrafeedback/grpovi.py",
        ),
        "test_notebooks.py::test_notebook": ("01_*",),
        "test_recipes.py::test_debug_runs_end_to_end": ("gsm8k/rloo", "tldr/online_dpo"),
        "test_sampling.py::test_tokens_do_not_depend_on_the_mesh": (
            "gpt_neox-shape3",
            "llama-shape0",
        ),
    }.items()
}
"""Parametrised tests of which these cases are quick, as patterns of `fnmatch`; their other cases are
long.
"""

SLOW = {
    f"tests/{name}": f"tests/{quicker}"
    for quicker, names in {
        "models/test_stacking.py::test_a_prompt_run_once_does_not_depend_on_the_form": [
            "runtime/test_stacked.py::"
        ],
        "algorithms/test_battery.py::test_battery[policy_gradient-compiles]": [
            "algorithms/test_battery.py::test_presets_compiled["
        ],
        "devices/test_copies.py::test_bfloat16_rounds_what_is_sent_and_nothing_else": [
            "devices/test_distributed.py::"
            "test_gradients_of_two_copies_may_cross_the_network_in_bfloat16"
        ],
        "devices/test_distributed.py::test_two_processes_with_slices_and_threads_train_as_one": [
            "devices/test_distributed.py::test_four_processes_share_one_copy_or_two_of_the_params",
            "devices/test_distributed.py::test_four_processes_train_as_one",
            "devices/test_distributed.py::test_only_the_first_process_writes",
            "devices/test_distributed.py::test_started_again_the_pipeline_ends_as_one_process_does",
        ],
        "devices/test_distributed.py::test_two_processes_in_flight_train_as_one[keep]": [
            "devices/test_distributed.py::"
            "test_a_pipeline_in_flight_of_two_processes_is_killed_and_ends_as_one"
        ],
        "planner/test_analytic.py::test_remat_trades_seconds_for_activations": [
            "planner/test_analytic.py::"
            "test_bytes_of_a_layer_with_remat_are_those_of_the_compiled_program"
        ],
        "planner/test_int8_base.py::test_a_call_casts_one_kernel_at_a_time": [
            "planner/test_int8_base.py::test_ppo_of_qwen3_1_7b_fits_on_a_v5e_of_sixteen_gigabytes"
        ],
        "records/test_layer_forms.py::test_a_checkpoint_is_read_in_either_form": [
            "stages/test_resuming.py::test_checkpoints_of_either_form_go_on_in_the_other"
        ],
        "models/test_rounding.py::"
        "test_every_family_computes_the_same_bits_from_held_params[llama]": [
            "stages/test_held.py::test_frozen_models_of_every_stage_are_held_in_bfloat16"
        ],
        "test_bench_matrix.py::test_the_page_is_written_from_the_committed_files": [
            "test_bench_slices.py::test_the_page_is_written_from_the_committed_files",
        ],
        "models/test_remat.py::test_an_update_keeps_less[eight layers in a scan]": [
            "models/test_remat.py::test_an_update_keeps_less[four layers]"
        ],
        "ops/test_sharded_logprobs.py::"
        "test_the_kernel_is_gathered_once_and_its_gradient_reduced_once": [
            "planner/test_tpu_compile.py::",
            "runtime/test_plans.py::test_fsdp_brings_params_together_and_not_rows",
        ],
        "studies/test_learning_rate_scale_study.py::test_controls_are_derived_from_the_scaled": [
            "studies/test_learning_rate_scale_study.py::"
            "test_a_yoked_run_has_the_factors_of_the_other"
        ],
        "sweeps/test_shared_stages.py::"
        "test_prompt_values_are_shared_where_an_algorithm_needs_them": [
            "sweeps/test_study_values.py::test_cells_that_agree"
        ],
        "studies/test_staleness_study.py::test_a_round_is_measured_by_whole_rows": [
            "studies/test_flat_groups_study.py::test_a_cell_records_norms_and_the_share_of_flat_groups",
            "studies/test_staleness_study.py::test_a_cell_records_every_round",
            "studies/test_staleness_token_tis_study.py::test_a_cell_of_the_corrected_arm_is_measured",
        ],
        "slots/test_round.py::test_windows_and_caps_are_sampled_alike": [
            "slots/test_round.py::test_every_family_is_sampled_alike["
        ],
        "stages/test_inflight.py::test_a_run_in_threads_goes_on_as_the_simulated_one[0]": [
            "stages/test_inflight.py::test_pinned_rows_go_on_in_threads_with_the_lag_of_the_clock",
            "stages/test_inflight.py::test_rounds_through_slots_have_the_lag_of_the_clock",
        ],
        "runtime/test_inflight.py::test_threaded_is_simulated_is_replayed[0-": [
            "stages/test_inflight.py::test_a_schedule_is_replayed_to_the_same_bits",
            "stages/test_kill.py::test_a_bounded_run_that_was_killed_is_repeated_by_its_ledger",
        ],
        "stages/test_kill.py::test_the_synchronous_loop_is_killed_too": [
            "stages/test_kill.py::test_an_interrupted_run_says_so_and_goes_on",
            "stages/test_kill.py::test_preemption_of_the_threads",
            "stages/test_kill.py::test_six_kills_change_nothing",
        ],
        "devices/test_liveness.py::test_a_process_that_has_left_is_not_missed": [
            "devices/test_liveness.py::test_processes_that_end_well_miss_nobody"
        ],
        "records/test_saved_rounds.py::test_every_checkpoint_keeps_its_rounds": [
            "stages/test_clocks.py::test_rounds_are_kept_as_long_as_their_window"
        ],
        "stages/test_clocks.py::test_a_buffer_goes_on_from_any_checkpoint[3]": [
            "stages/test_kill.py::test_three_kills_of_a_buffered_run"
        ],
        "stages/test_dpo.py::test_a_stopped_run_ends_as_one_that_never_was[2]": [
            "stages/test_kill.py::test_offline_dpo_killed_before"
        ],
        "third_party/test_commands.py::test_a_sweep_of_them_runs_ends_and_is_read_again": [
            "studies/test_offpolicyness_study.py::test_four_cells_run_and_are_not_run_again",
            "studies/test_offpolicyness_study.py::"
            "test_a_worker_that_fails_is_named_with_its_last_line",
        ],
        "stages/test_beginning.py::test_other_settings_may_be_chosen": [
            "stages/test_beginning.py::test_from_the_sft_policy_the_same_run_comes_again"
        ],
        "test_bench_matrix.py::test_the_index_is_of_today": [
            "test_bench_matrix.py::test_the_index_is_of_today_for_all_recipes["
        ],
        "studies/test_inflight_studies.py::test_few_mixed_rows_are_told": [
            "studies/test_inflight_studies.py::test_a_rebuilt_cache_has_no_gap_and_a_kept_one_has"
        ],
        "studies/test_inflight_studies.py::test_a_matched_schedule_has_the_ages_in_sum": [
            "studies/test_inflight_studies.py::test_a_matched_run_is_as_old_as_the_tokens_in_flight"
        ],
        "runtime/test_inflight_programs.py::test_adapters_are_drawn_in_flight_on_one_base": [
            "runtime/test_inflight_programs.py::test_adapters_of_four_roles_are_drawn_in_flight"
        ],
        "runtime/test_inflight_programs.py::"
        "test_nothing_of_the_slots_is_compiled_after_the_beginning_on_one_device_and_on_two": [
            "runtime/test_pinned_programs.py::test_versions_add_no_program_on_one_device_and_on_two"
        ],
        "stages/test_kept_answers.py::test_two_rewards_of_a_sum_have_a_store_each": [
            "stages/test_own_rewards.py::test_a_sum_is_recorded_term_by_term"
        ],
        "runtime/test_adapters.py::"
        "test_all_roles_share_the_arrays_of_one_base_before_and_after_updates": [
            "runtime/test_adapters.py::test_slices_hold_the_base_and_are_given_adapters_alone"
        ],
        "stages/test_lora.py::test_a_run_that_lost_its_last_rounds_ends_on_the_same_bits": [
            "stages/test_smollm2_recipes.py::"
            "test_a_cell_of_sentiment_is_one_run_in_threads_simulated_and_resumed["
        ],
        "records/test_profiles.py::test_the_profiler_writes_a_trace": [
            "stages/test_resuming.py::test_chosen_updates_are_profiled_and_change_nothing"
        ],
        "stages/test_signal.py::test_a_run_outside_of_the_bounds_ends_with_both_figures": [
            "stages/test_signal.py::"
            "test_a_run_within_the_bounds_says_so_and_trains_as_without_the_measurement"
        ],
        "stages/test_resuming.py::test_a_longer_run_says_which_versions_it_makes_again": [
            "stages/test_resuming.py::test_a_longer_run_is_the_one_that_was_longer_from_the_start"
        ],
        "models/test_stacking.py::test_decoding_from_stacked_params_is_decoding_from_unrolled": [
            "models/test_stacking.py::test_samples_of_stacked_params_are_those_of_unrolled_ones"
        ],
        "stages/test_resuming.py::test_other_micro_batches_go_on_and_are_told": [
            "stages/test_plans.py::test_a_checkpoint_of_one_plan_goes_on_under_another",
            "stages/test_dpo.py::test_micro_batches_and_shards_change_rounding_only",
        ],
        "stages/test_plans.py::test_fit_cuts_the_calls_of_the_runs_own_mesh": [
            "stages/test_plans.py::test_a_run_searches_once"
        ],
        "cli/test_sweep.py::test_cells_run_and_are_not_run_again": [
            "cli/test_sweep_grid.py::test_a_failed_cell_is_named_with_its_last_line",
            "cli/test_sweep_grid.py::test_after_a_kill_the_same_command_runs_what_is_left",
            "cli/test_sweep_grid.py::test_the_table_has_the_figures_of_the_cell_that_is_done",
        ],
        "docs/test_pages.py::test_a_page_runs_as_it_is_printed[docs/guides/resume.md]": [
            "docs/test_pages.py::test_the_page_of_the_quickstart_runs_as_it_is_printed",
            "face/test_names.py::test_the_page_runs_as_printed",
        ],
    }.items()
    for name in names
}
"""Beginnings of the names of other long tests, each with that of a quicker test of the same kind."""


FIRST = (
    "tests/devices/test_distributed.py",
    "tests/algorithms/test_battery.py",
    "tests/stages/test_resuming.py",
    "tests/stages/test_kill.py",
    "tests/stages/test_beginning.py",
    "tests/runtime/test_golden_steps.py",
    "tests/stages/test_lora.py",
    "tests/stages/test_dpo.py",
    "tests/run_directory/test_changes.py",
    "tests/cli/test_plan.py",
    "tests/third_party/test_batteries.py",
    "tests/test_recipes.py",
    "tests/stages/test_pretrained_models.py",
    "tests/stages/test_smollm2_recipes.py",
    "tests/test_package.py",
    "tests/stages/test_plans.py",
)
"""Files that take longest, the longest first. A process that begins one of them last would run on
alone while the others wait.
"""


def is_slow(name: str) -> bool:
    """True for the name of a long test."""
    test, bracket, case = name.partition("[")
    quick = QUICK_CASES.get(test) if bracket else None
    if quick is not None:
        return not any(fnmatchcase(case.removesuffix("]"), pattern) for pattern in quick)
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


def _test(name: str) -> str:
    return name.partition("[")[0]


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def mark(
    config: pytest.Config, items: list[pytest.Item], whole: bool, leaves_out: bool = True
) -> None:
    """Marks long tests, and leaves them out where the command line does not ask for them.

    Args:
      config: of the tests.
      items: that are collected; those that are left out are removed.
      whole: True where they are the whole suite.
      leaves_out: False for the batteries of a user's own component, which have all of their cases.

    Raises UsageError where the whole suite is collected and a name of the list is of no test, or
    its quicker test is none or is slow too.
    """
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker(pytest.mark.slow)
    if whole:
        check([item.nodeid for item in items])
    if (
        not leaves_out
        or config.option.markexpr
        or any("::" in argument for argument in config.args)
    ):
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
    for test, patterns in QUICK_CASES.items():
        cases = [name.partition("[")[2].removesuffix("]") for name in names if _test(name) == test]
        for pattern in patterns:
            if not any(fnmatchcase(case, pattern) for case in cases):
                raise pytest.UsageError(f"tests/slow.py: {test} has no case {pattern!r}")
    for slow, quicker in SLOW.items():
        if not any(name.startswith(slow) for name in names):
            raise pytest.UsageError(f"tests/slow.py names {slow!r}, which is no test")
        if not any(name.startswith(quicker) for name in quick):
            raise pytest.UsageError(
                f"tests/slow.py names {quicker!r}, which is no quick test, beside {slow!r}"
            )
