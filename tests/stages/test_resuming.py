"""Going on: from any kept checkpoint, past damaged ones, with other settings, further than planned;
to the same numbers.
"""

import itertools
import json
import shutil
import traceback

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlhf_jax.models.common import decoder, stacking
from rlhf_jax.records.checkpoints import Checkpoints
from rlhf_jax.records.rates import is_timing
from rlhf_jax.records.saved_rounds import SavedRounds
from rlhf_jax.refusal import Refusal
from tests.stages import runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 updates at lag 2 that was never stopped, with a checkpoint of each."""
    directory = tmp_path_factory.mktemp("resuming") / "whole"
    runs.run(directory)
    assert runs.steps(directory) == [1, 2, 3, 4, 5, 6, 7, 8]
    return directory


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it, to be damaged and gone on with."""
    return shutil.copytree(whole, tmp_path / "run")


def remove_after(run, step):
    for later in runs.steps(run):
        if later > step:
            shutil.rmtree(run / "checkpoints" / "rlhf" / str(later))


def damage(run, step):
    """Cuts the files that hold the arrays of a version."""
    for path in (run / "checkpoints" / "rlhf" / str(step)).rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:50])


def with_one_version(path):
    """A round's file as it was when a round had one version, a scalar."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    version_BC = arrays.pop("version_BC")
    version = version_BC[arrays["mask_BC"]].max()
    np.savez(path, version=version, **arrays)


@pytest.mark.parametrize("step", [1, 6])
def test_every_kept_version_can_be_gone_back_to(whole, run, step, capfd):
    """Its rounds were sampled by versions that are gone, and are kept as long as it is; those of
    version 1 have the format of earlier releases.

    Nothing before it is made again.
    """
    remove_after(run, step)
    for round_index in (1, 2) if step == 1 else ():
        with_one_version(run / "rounds" / f"{round_index:08d}.npz")
    kept = [run / "checkpoints" / "rlhf" / str(version) for version in range(1, step + 1)]
    written = [path.stat().st_ino for path in kept]
    runs.run(run)
    assert [path.stat().st_ino for path in kept] == written
    assert runs.steps(run) == runs.steps(whole)
    assert not runs.differences(whole, run)
    assert "note:" not in capfd.readouterr().err


def test_where_a_round_has_one_version_its_tokens_have_one_age(whole):
    """Eight rounds of one update at lag 2: ages 0, 1, 2, 2, ..."""
    updates = [line for line in runs.lines(whole, "metrics.jsonl") if "of" not in line]
    updates = [line for line in updates if "update" in line]
    for name in ("age", "age_mean", "age_p95", "age_max", "age_mean_short", "age_mean_long"):
        assert [line[name] for line in updates] == [0, 1, *[2] * 6], name
    assert [line["mixed_share"] for line in updates] == [0.0] * 8
    rows = runs.lines(whole, "ledger.jsonl")
    assert [row["version"] for row in rows] == [max(0, row["round"] - 2) for row in rows]
    assert not any("versions" in row or "age_mean" in row for row in rows)
    assert {age for row in rows for age in row["ages"]} == {0, 1, 2}


def test_each_update_has_the_cosine_of_its_gradient_with_the_last(whole):
    """Where both are not 0. Runs that go on have the same ones to the bit: `runs.differences` compares
    every figure.
    """
    updates = [line for line in runs.lines(whole, "metrics.jsonl") if "gradient_cosine" in line]
    assert len(updates) == 8
    norms = [0.0, *(line["grad_norm"] for line in updates)]
    cosines = [line["gradient_cosine"] for line in updates]
    zeros = [last == 0 or norm == 0 for last, norm in itertools.pairwise(norms)]
    assert [value == "NaN" for value in cosines] == zeros
    values = [value for value in cosines if value != "NaN"]
    assert values
    assert all(0 < abs(value) < 1 for value in values)


def rounds_on_disk(run):
    return sorted(int(path.stem) for path in (run / "rounds").iterdir())


@pytest.mark.parametrize("clock", ["exact", "bounded"])
def test_rounds_are_dropped_once_they_are_trained_on(tmp_path, monkeypatch, clock):
    """At lag 2 each round that is sampled early is filed, and without a checkpoint three are ahead
    at most. None is left after the end, where the last version is the only one that is kept.
    """
    run, seen, write = tmp_path / "run", [], SavedRounds.write

    def looked(self, round_index, samples):
        write(self, round_index, samples)
        seen.append(rounds_on_disk(run))

    monkeypatch.setattr(SavedRounds, "write", looked)
    # the policy is returned without reading the optimizer's state back
    monkeypatch.setattr(Checkpoints, "restore", lambda *_: pytest.fail("a whole state was read"))
    runs.run(run, rlhf__checkpoint_every=0, rlhf__clock=clock, rlhf__loop="asynchronous")
    if clock == "exact":
        assert [rounds[-1] for rounds in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert max(map(len, seen)) <= 3
    assert rounds_on_disk(run) == []


def test_a_second_run_of_a_process_traces_no_model_again(whole, tmp_path, monkeypatch):
    """Its programs are those of the first, whose shapes it has."""
    traced, apply = [], decoder.Decoder.apply

    def counted(*args, **named):
        traced.append(traceback.format_stack())
        return apply(*args, **named)

    monkeypatch.setattr(decoder.Decoder, "apply", counted)
    runs.run(tmp_path / "again")
    assert not traced, "".join(traced[0])
    assert not runs.differences(whole, tmp_path / "again")


def test_without_its_rounds_a_version_is_refused_and_nothing_touched(run):
    remove_after(run, 4)
    shutil.rmtree(run / "rounds")
    (run / "rounds").mkdir()
    before = runs.tree(run)
    words = rf"can be gone on from \(1: .+00000001.npz is missing; 2: .+ or add --config\.begin={run}@4 --config\.directory="
    with pytest.raises(Refusal, match=words):
        runs.run(run)
    assert runs.tree(run) == before


def test_the_newest_version_with_its_rounds_is_taken(whole, run, capfd):
    """What is later is kept until training has come past it."""
    remove_after(run, 5)
    (run / "rounds" / "00000006.npz").unlink()  # version 5 needs it; version 4 needs rounds 4 and 5
    runs.run(run)
    assert "checkpoint 5 of" in (err := capfd.readouterr().err)
    assert "00000006.npz is missing): going on from 4" in err
    assert not runs.differences(whole, run)
    assert not (run / "set_aside").exists()


def test_a_damaged_version_is_named_and_the_one_before_taken(whole, run, capfd):
    remove_after(run, 6)
    damage(run, 6)
    runs.run(run)
    err = capfd.readouterr().err
    assert err.count("cannot be used") == 1
    assert "checkpoint 6 of" in err
    assert "going on from 5" in err
    assert not runs.differences(whole, run)


def test_a_damaged_end_is_trained_again(whole, run, capfd):
    damage(run, 8)
    runs.run(run)
    assert "going on from 7" in capfd.readouterr().err
    assert not runs.differences(whole, run)


def test_a_damaged_round_is_named_and_the_version_before_taken(whole, run, capfd):
    remove_after(run, 4)
    path = run / "rounds" / "00000005.npz"
    path.write_bytes(path.read_bytes()[:200])
    runs.run(run)
    err = capfd.readouterr().err
    assert "00000005.npz cannot be read" in err
    assert "going on from 3" in err
    assert not runs.differences(whole, run)


def test_damaged_sft_is_trained_again_from_the_version_before(whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole / "checkpoints" / "sft", run / "checkpoints" / "sft")
    (run / "checkpoints" / "sft" / "4" / "default" / "manifest.ocdbt").unlink()
    runs.run(run, job="sft")
    assert "checkpoints/sft cannot be used" in capfd.readouterr().err
    assert runs.same(runs.state(whole, "sft"), runs.state(run, "sft"))


def test_a_killed_run_keeps_what_it_moved_aside(run, monkeypatch):
    """Until training has come past it, however often it is started again."""
    remove_after(run, 6)
    damage(run, 6)
    from rlhf_jax.records.checkpoints import Checkpoints

    def killed(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Checkpoints, "save", killed)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            runs.run(run)
        aside = run / "set_aside" / "rlhf"
        assert sorted(path.name for path in aside.iterdir()) == ["6", "6.lines"]
        told = [
            json.loads(line)["update"]
            for line in (aside / "6.lines" / "ledger.jsonl").read_text().splitlines()
        ]
        assert sorted(set(told)) == [5, 6, 7]


def test_lost_checkpoints_are_told_and_the_lines_kept(whole, run, capfd, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "rlhf")
    runs.run(run)
    err = capfd.readouterr().err
    assert (
        "no checkpoint is left of 8 updates of rlhf: it begins again at version 0, and their lines "
        "are kept" in err
    )
    assert not runs.differences(whole, run)
    assert not (run / "set_aside").exists(), "they were written again"


def cut_lines(run, updates):
    """Removes lines of RLHF from this update on from the records, and what was written after."""
    for name in ("metrics.jsonl", "ledger.jsonl"):
        lines = (run / name).read_text().splitlines(keepends=True)
        of_update = [json.loads(line) for line in lines]
        first = next(
            place
            for place, line in enumerate(of_update)
            if line["stage"] == "rlhf" and line.get("update", 0) >= updates
        )
        (run / name).write_text("".join(lines[:first]))


@pytest.mark.parametrize(("version", "last"), [(6, 3), (8, 3), (6, None)])
def test_records_that_end_before_the_version_are_named(whole, run, capfd, version, last):
    """A version that is gone on from, and the last one of a run that has ended."""
    remove_after(run, version)
    cut_lines(run, 0 if last is None else last + 1)
    runs.run(run)
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note:")]
    found = "has no update" if last is None else f"ends with update {last}"
    for name, note in zip(("metrics.jsonl", "ledger.jsonl"), notes, strict=True):
        assert (
            f"{run / name} {found} of rlhf, and version {version}, which the stage goes on from, "
            f"needs the lines up to update {version - 1}" in note
        )
        after = 0 if last is None else last + 1
        assert f"remove the checkpoints of rlhf after version {after}" in note
    assert runs.same(runs.state(whole), runs.state(run))


def test_records_that_were_cut_are_made_again_as_the_note_says(whole, run, capfd):
    remove_after(run, 6)
    cut_lines(run, 4)
    remove_after(run, 4)
    runs.run(run)
    assert "note:" not in capfd.readouterr().err
    assert not runs.differences(whole, run)


CADENCES = {
    "rlhf__keep_checkpoints": 3,
    "rlhf__checkpoint_every": 2,
    "rlhf__deadline_seconds": 50.0,
}


@pytest.mark.parametrize(
    "changed", [{"rlhf__loop": "asynchronous"}, CADENCES], ids=["loop", "cadences"]
)
def test_free_keys_change_no_number(whole, run, changed):
    remove_after(run, 3)
    runs.run(run, **changed)
    assert not runs.differences(whole, run)
    assert runs.last_start(run)["at"] == {"sft": 4, "rlhf": 3}
    assert runs.last_start(run)["changed"].keys() == {key.replace("__", ".") for key in changed}


def test_evaluations_made_are_kept_when_they_become_rarer(whole, run):
    remove_after(run, 5)
    runs.run(run, rlhf__evaluate_every=0)
    assert not runs.differences(whole, run, ("ledger.jsonl",))
    evaluated = [
        line["update"] for line in runs.lines(run, "metrics.jsonl") if line["stage"] == "evaluate"
    ]
    assert evaluated == [0, 4, 8]


def test_other_micro_batches_go_on_and_are_told(whole, run, capfd):
    remove_after(run, 3)
    runs.run(run, rlhf__num_micro_batches=2)
    assert (
        "from version 3 of rlhf on, numbers agree with those of before to rounding only"
        in capfd.readouterr().err
    )
    for one, other in zip(runs.state(whole), runs.state(run), strict=True):
        assert one == pytest.approx(other, rel=1e-2, abs=1e-3)


def test_a_longer_run_is_the_one_that_was_longer_from_the_start(tmp_path, capfd):
    """At lag 2 the last rounds of the longer one are sampled by versions before the shorter one's
    end.
    """
    schedule = {"rlhf__optimizer__schedule": "constant", "rlhf__keep_checkpoints": 4}
    for name, prompts in (("long", 48), ("grown", 32), ("grown", 48)):
        runs.run(tmp_path / name, rlhf__total_prompts=prompts, **schedule)
    assert runs.steps(tmp_path / "grown")[-1] == 12
    assert not runs.differences(tmp_path / "long", tmp_path / "grown")
    assert (
        "rlhf.total_prompts was 32 and is 48: the run is longer (from version 8 of rlhf on)"
        in capfd.readouterr().err
    )
    made = json.loads((tmp_path / "grown" / "checkpoints" / "rlhf" / ".made_with.json").read_text())
    assert made["config"]["rlhf.total_prompts"] == 48
    with pytest.raises(Refusal, match="a run may only grow"):
        runs.run(tmp_path / "grown", rlhf__total_prompts=32, **schedule)


CONSTANT = {"rlhf__optimizer__schedule": "constant"}


def test_a_longer_run_says_which_versions_it_makes_again(tmp_path, capfd):
    """The last two at lag 2: rounds that follow the shorter run were never sampled, which is no
    damage.
    """
    run = tmp_path / "run"
    for prompts in (24, 32):
        runs.run(run, rlhf__total_prompts=prompts, **CONSTANT)
    err = capfd.readouterr().err
    assert "cannot be used" not in err
    assert ".npz" not in err
    assert err.count("goes on from version") == 1
    assert (
        "rlhf goes on from version 4, and makes those up to 6 again: the run was to end at version "
        "6, and its following" in err
    )


def test_damage_before_the_end_of_a_longer_run_is_still_told(tmp_path, capfd):
    run = tmp_path / "run"
    runs.run(run, rlhf__total_prompts=24, **CONSTANT)
    damage(run, 4)
    runs.run(run, rlhf__total_prompts=32, **CONSTANT)
    err = capfd.readouterr().err
    assert "checkpoint 4 of" in err
    assert "rlhf goes on from version 3, and makes those up to 6 again" in err


@pytest.mark.parametrize(
    "kept", [{"rlhf__checkpoint_every": 0}, {"rlhf__keep_checkpoints": 1}], ids=["every", "keep"]
)
def test_a_run_that_cannot_grow_is_refused_with_the_fork(tmp_path, capfd, kept):
    """Before anything is written, so that the run is as it was."""
    run, settings = tmp_path / "run", CONSTANT | kept
    runs.run(run, rlhf__total_prompts=16, **settings)
    assert runs.steps(run) == [4]
    files = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    with pytest.raises(
        Refusal, match=r"4: the run was to end at version 4, .+keep rlhf\.total_prompts=16, or add "
    ) as refused:
        runs.run(run, rlhf__total_prompts=32, **settings)
    assert {path: path.read_bytes() for path in files} == files
    assert "\n" not in str(refused.value)
    assert f"--config.begin={run}@4 --config.directory={run}_fork" in str(refused.value)
    capfd.readouterr()
    runs.run(run, rlhf__total_prompts=16, **settings)
    assert "note:" not in capfd.readouterr().err
    runs.run(tmp_path / "run_fork", begin=f"{run}@4", rlhf__total_prompts=8, **settings)
    assert runs.steps(tmp_path / "run_fork") == [2]


def test_without_a_lag_the_last_version_is_gone_on_from(tmp_path, capfd):
    settings = CONSTANT | {"rlhf__lag": 0, "rlhf__checkpoint_every": 0}
    for prompts in (16, 32):
        runs.run(tmp_path / "run", rlhf__total_prompts=prompts, **settings)
    assert "again" not in capfd.readouterr().err
    assert runs.steps(tmp_path / "run")[-1] == 8


def test_versions_past_the_end_are_refused(run):
    """Copied without what says that they are of a longer run."""
    for path in (run / "config.json", run / "checkpoints" / "rlhf" / ".made_with.json"):
        path.unlink()
    with pytest.raises(Refusal, match="has version 8, but the run ends with version 4"):
        runs.run(run, rlhf__total_prompts=16)
    (run / "checkpoints" / "sft" / ".made_with.json").unlink()
    (run / "config.json").unlink(missing_ok=True)
    with pytest.raises(Refusal, match=r"checkpoints/sft has 4 updates, but sft\.num_updates is 2"):
        runs.run(run, sft__num_updates=2)


def test_a_bounded_run_samples_a_damaged_round_again(tmp_path, capfd):
    bounded = {"rlhf__loop": "asynchronous", "rlhf__clock": "bounded"}
    run = tmp_path / "run"
    runs.run(run, **bounded)
    remove_after(run, 4)
    for path in (run / "rounds").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    runs.run(run, **bounded)
    assert "00000004.npz cannot be read" in (err := capfd.readouterr().err)
    assert "the round is sampled again" in err
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert sorted((row["ordinal"], row["sample"]) for row in rows) == [
        (o, s) for o in range(32) for s in range(2)
    ]


def test_lines_of_updates_have_the_speed_of_the_round_before(whole):
    """On a CPU there is no MFU, since its peak is not known."""
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    timings = {
        stage: [
            {name for name in line if is_timing(name)}
            for line in lines
            if line["stage"] == stage and "update" in line
        ]
        for stage in ("sft", "rlhf")
    }
    rates = {"samples_per_second", "sampled_tokens_per_second", "trained_tokens_per_second"}
    parts = {"round_seconds", "generate_seconds", "publish_seconds", "train_seconds"}
    assert timings["rlhf"] == [{"seconds"}] + [{"seconds"} | rates | parts] * 7
    steps = {"step_seconds", "rows_per_second", "trained_tokens_per_second"}
    # none of the first update, and of the one after the checkpoint of two
    assert timings["sft"] == [{"seconds"}, {"seconds"} | steps] * 2


def test_chosen_updates_are_profiled_and_change_nothing(tmp_path):
    """In both loops: a folder for each chosen update, and the end of a run without."""
    runs.run(tmp_path / "plain")
    for loop in ("synchronous", "asynchronous"):
        directory = tmp_path / loop
        runs.run(directory, rlhf__profile_updates=(2, 5), rlhf__loop=loop)
        traced = sorted(path.name for path in (directory / "profile").iterdir())
        assert traced == ["update_2", "update_5"]
        assert list((directory / "profile" / "update_5").rglob("*.xplane.pb"))
        assert runs.same(runs.policy(directory), runs.policy(tmp_path / "plain"))


def test_checkpoints_of_either_form_go_on_in_the_other(tmp_path, capfd):
    """Version 1 has an entry per layer, and 2 has its layers stacked; the params at the end are
    those of a run that was unrolled all along, up to rounding.
    """
    whole, run = tmp_path / "whole", tmp_path / "run"
    settings = {
        "model__num_layers": 2,
        "rlhf__total_prompts": 12,
        "rlhf__lag": 1,
        "rlhf__evaluate_every": 0,
    }
    runs.run(whole, **settings)
    shutil.copytree(whole, run)
    names = []
    for newest, scan_layers in ((1, 2), (2, 0)):
        remove_after(run, newest)
        capfd.readouterr()
        runs.run(run, model__scan_layers=scan_layers, **settings)
        assert "numbers agree with those of before to rounding only" in capfd.readouterr().err
        assert runs.steps(run) == [1, 2, 3]
        with ocp.CheckpointManager(run / "checkpoints" / "rlhf") as manager:
            tree = manager.restore(3, args=ocp.args.StandardRestore())
        params = tree["policy"]["params"]
        names.append("scanned_layers_0" in params)
        np.testing.assert_allclose(
            np.concatenate([x.ravel() for x in jax.tree.leaves(stacking.unstack(params))]),
            np.concatenate([x.ravel() for x in runs.policy(whole)]),
            atol=1e-5,
        )
    assert names == [True, False]
