"""A config against the directory of a run that has begun: what changes, what is told, what is
refused. Nothing is trained.
"""

import functools
import json
import shutil

import pytest

from configs import quickstart
from rlhf_jax import build
from rlhf_jax.models import gpt_neox
from rlhf_jax.pretrained import export
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import digests, environment, stage_records, starts
from rlhf_jax.tasks import reviews
from tests.models.families import random_params

MAKE = functools.cache(reviews.make)


@pytest.fixture(autouse=True)
def _one_task(monkeypatch):
    """The task lists its prompts whenever it is made, which takes most of the time that a config is
    checked.
    """
    monkeypatch.setattr(reviews, "make", MAKE)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def config_of(directory, **changed):
    """The quickstart's config, with flattened keys changed."""
    config = quickstart.get_config(changed.pop("choice", ""))
    config.directory = str(directory)
    config.update_from_flattened_dict(changed)
    return config


def prepare(directory, **changed):
    return build.prepare(config_of(directory, **changed))


def has(directory, **versions):
    """Makes checkpoints of stages, recorded as made with the quickstart's config."""
    parts = build.checked(config_of(directory))[1]
    for stage, version in versions.items():
        (directory / "checkpoints" / stage / str(version)).mkdir(parents=True)
        parts[0].record(stage)


@pytest.fixture
def begun(run):
    """A run whose SFT stage has ended, and whose RLHF stage has come to version 16."""
    prepare(run)
    has(run, sft=500, rlhf=16)
    return run


def stored(directory):
    return json.loads((directory / "config.json").read_text())


def bytes_of(directory):
    return {
        str(path): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


FREE = {
    "rlhf.loop": "synchronous",
    "rlhf.deadline_seconds": 900.0,
    "rlhf.checkpoint_every": 2,
    "rlhf.keep_checkpoints": 7,
    "rlhf.evaluate_every": 0,
    "rlhf.log_samples": 8,
    "rlhf.ledger": False,
    "sft.checkpoint_every": 3,
}


@pytest.mark.parametrize("key", FREE)
def test_a_free_key_changes_and_is_written_down(begun, capsys, key):
    prepare(begun, **{key: FREE[key]})
    last = starts.read(begun)[-1]
    before = last["changed"][key][0]
    assert last["changed"] == {key: [before, FREE[key]]}
    assert last["at"] == {"sft": 500, "rlhf": 16}
    node, name = key.split(".")
    assert stored(begun)[node][name] == FREE[key]
    assert (
        f"note: {key} was {before!r} and is {FREE[key]!r}: no number changes\n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("evaluate.num_prompts", 512), ("evaluate.references_per_prompt", 1), ("best_of_n", (1, 2))],
)
def test_evaluations_of_another_kind_are_told_apart(begun, capsys, key, value):
    prepare(begun, **{key: value})
    err = capsys.readouterr().err
    assert (
        "figures of evaluations before and after are of different kinds (from version 16 of rlhf "
        "on)" in err
    )
    assert key in starts.read(begun)[-1]["changed"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rlhf.num_micro_batches", 4),
        ("model.remat", True),
        ("mesh.data", 2),
        ("plan", "generate: 0-3 data=4"),
    ],
)
def test_rounding_is_told_with_its_version(begun, capsys, key, value):
    prepare(begun, **{key: value})
    err = capsys.readouterr().err
    assert f"{key} was " in err
    assert "from version 16 of rlhf on, numbers agree with those of before to rounding only" in err


def mesh_of(data, fsdp):
    """A mesh of one host, as the config stores it."""
    return {"data": data, "fsdp": fsdp, "tensor": 1, "fsdp_hosts": 1}


def test_the_mesh_that_is_used_is_stored(run, capsys):
    """Eight devices, then four: -1 says nothing of either."""
    prepare(run, **{"mesh.data": -1})
    has(run, sft=100)
    assert stored(run)["mesh"] == mesh_of(8, 1) == starts.read(run)[-1]["mesh"]
    prepare(run, **{"mesh.data": -1, "mesh.fsdp": 2})
    assert stored(run)["mesh"] == mesh_of(4, 2)
    assert (
        "mesh.data was 8 and is 4, mesh.fsdp was 1 and is 2: from version 100 of sft on"
        in capsys.readouterr().err
    )


def test_a_reader_with_fewer_devices_takes_those_there_are(run):
    prepare(run)
    values = stored(run)
    values["mesh"] = mesh_of(64, 1)
    (run / "config.json").write_text(json.dumps(values))
    assert dict(build.of_directory(run)[0].mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    config = build.config_of(run)
    config.mesh.update({"data": 64, "fsdp": 1})
    with pytest.raises(Refusal, match="64 devices"):
        build.parts(config)


NUMBERS = {
    "rlhf.lag": (2, True),
    "rlhf.optimizer.learning_rate": (1e-4, True),
    "rlhf.samples_per_prompt": (4, True),
    "algorithm.beta": (0.25, True),
    "reward": ("gold", True),
    "seed": (1, True),
    "lengths.max_completion_tokens": (20, True),
    "sft.num_updates": (400, False),
    "model.width": (32, False),
    "task.heldout_percent": (20, False),
}


@pytest.mark.parametrize("key", NUMBERS)
def test_what_enters_the_numbers_is_refused_with_the_fork(begun, key):
    value, forks = NUMBERS[key]
    before = bytes_of(begun)
    with pytest.raises(Refusal) as refused:
        prepare(begun, **{key: value})
    message = str(refused.value)
    assert f"{key} (" in message
    assert f"{value!r} now)" in message
    fork = f"add --config.begin={begun}@16 --config.directory={begun}_fork"
    assert (fork in message) == forks, message
    assert ("take another --config.directory" in message) != forks
    assert bytes_of(begun) == before, "nothing is written"


def test_another_algorithm_is_one_change(begun):
    with pytest.raises(
        Refusal, match=r"algorithm\.name \('online_dpo' there, 'ppo' now\): enters the numbers"
    ):
        prepare(begun, choice="algorithm=ppo")


def test_a_key_may_change_before_its_stage_has_a_checkpoint(run):
    """SFT has ended: what only RLHF reads is free to choose, what SFT was made with is not."""
    prepare(run)
    prepare(run, seed=3)
    prepare(run)
    has(run, sft=500)
    prepare(
        run,
        choice="algorithm=rloo",
        **{"rlhf.lag": 3, "reward": "gold", "comparisons.num_train": 512},
    )
    assert stored(run)["algorithm"]["name"] == "rloo"
    with pytest.raises(Refusal, match=r"the stage sft of .+ seed \(0 there, 3 now\)"):
        prepare(run, seed=3)


CONSTANT = {"rlhf.optimizer.schedule": "constant"}


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (CONSTANT, CONSTANT | {"rlhf.total_prompts": 8192}, ""),
        ({}, {"rlhf.total_prompts": 8192}, "a learning rate ends with it"),
        (CONSTANT, CONSTANT | {"rlhf.total_prompts": 2048}, "a run may only grow"),
        (
            CONSTANT | {"choice": "algorithm=ppo"},
            CONSTANT | {"choice": "algorithm=ppo", "rlhf.total_prompts": 8192},
            "a learning rate ends with it",
        ),
    ],
)
def test_a_run_grows_where_no_learning_rate_ends(run, first, then, words):
    """The last one has a critic whose learning rate is linear."""
    prepare(run, **first)
    values, parts, _ = build.checked(config_of(run, **first))
    for stage, version in (("sft", 500), ("rlhf", 16)):
        (run / "checkpoints" / stage / str(version)).mkdir(parents=True)
        parts[0].record(stage)
    (run / "rounds").mkdir()
    (run / "rounds" / "00000016.npz").touch()  # sampled by version 15
    if not words:
        prepare(run, **then)
        assert stored(run)["rlhf"]["total_prompts"] == 8192 != values["rlhf"]["total_prompts"]
        return
    with pytest.raises(Refusal, match=words) as refused:
        prepare(run, **then)
    assert f"--config.begin={run}@16" in str(refused.value)


def test_a_longer_run_that_was_planned_and_not_begun_is_taken_back(run, capsys):
    """The note says in which direction the run was changed."""
    prepare(run, **CONSTANT)
    has(run, sft=500)
    prepare(run, **CONSTANT | {"rlhf.total_prompts": 8192})
    assert "and is 8192: the run is longer (from" in capsys.readouterr().err
    prepare(run, **CONSTANT)
    err = capsys.readouterr().err
    assert "rlhf.total_prompts was 8192 and is" in err
    assert "the run is shorter (from" in err
    assert "longer" not in err


def without_config(run, place):
    """A copy of what a run has trained."""
    for name in ("checkpoints", "rounds"):
        if (run / name).exists():
            shutil.copytree(run / name, place / name)
    return place


def test_a_copy_without_a_config_names_the_run_that_it_is_of(begun, tmp_path):
    copied = without_config(begun, tmp_path / "copy")
    words = rf"rlhf\.lag .+add --config\.begin={begun}@16 --config\.directory={copied}_fork"
    with pytest.raises(Refusal, match=words):
        prepare(copied, **{"rlhf.lag": 2})


@pytest.mark.parametrize("lost", ["", "config.json", "checkpoints/rlhf/16", "checkpoints/sft"])
def test_a_copy_of_a_run_that_cannot_be_begun_from_takes_another_directory(begun, tmp_path, lost):
    """Gone, or without what would be taken from it."""
    copied = without_config(begun, tmp_path / "copy")
    place = begun / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(Refusal, match=r"rlhf\.lag .+take another --config\.directory") as refused:
        prepare(copied, **{"rlhf.lag": 2})
    assert "--config.begin" not in str(refused.value)


def test_a_run_whose_config_is_damaged_is_not_named_to_begin_from(begun):
    (begun / "config.json").write_text("{")
    with pytest.raises(Refusal, match=r"rlhf\.lag .+take another --config\.directory"):
        prepare(begun, **{"rlhf.lag": 2})


def test_a_precision_may_change_between_stages_and_not_within_one(run, capsys):
    prepare(run)
    has(run, sft=500)
    prepare(run, **{"model.dtype": "bfloat16"})
    assert (
        "sft was computed with model.dtype=float32, and is used with bfloat16"
        in capsys.readouterr().err
    )
    prepare(run)
    has(run, rlhf=16)
    with pytest.raises(Refusal, match=r"the stage rlhf .+ model\.dtype"):
        prepare(run, **{"model.dtype": "bfloat16"})


def test_a_stage_that_is_half_done_keeps_its_precision(run):
    prepare(run)
    has(run, sft=250)
    with pytest.raises(Refusal, match=r"the stage sft .+ model\.dtype"):
        prepare(run, **{"model.dtype": "bfloat16"})


def test_a_copied_stage_tells_what_it_was_made_with(begun, tmp_path):
    """Without the directory's config, which was not copied."""
    copied = tmp_path / "copy"
    shutil.copytree(begun / "checkpoints" / "sft", copied / "checkpoints" / "sft")
    with pytest.raises(
        Refusal, match=r"the stage sft of .+copy .+ sft\.optimizer\.learning_rate \(0\.006 there"
    ):
        prepare(copied, **{"sft.optimizer.learning_rate": 1e-3})
    assert not (copied / "config.json").exists()
    prepare(copied, **{"rlhf.lag": 5})


def lines(*words):
    return "".join(
        json.dumps({"prompt": f"say {n}", "answer": word}) + "\n"
        for n, word in enumerate(words * 20)
    )


def test_data_may_move_and_not_change(run, tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text(lines("yes", "no"))
    given = {"tokenizer.kind": "bytes", "reward": "exact_match", "lengths.max_prompt_tokens": 16}

    def with_data(path):
        config = config_of(run, **given)
        config.task = build.component("tasks", "jsonl")
        config.task.prompts = str(path)
        return config

    build.prepare(with_data(one))
    parts = build.checked(with_data(one))[1]
    (run / "checkpoints" / "sft" / "500").mkdir(parents=True)
    parts[0].record("sft")
    one.rename(other)
    build.prepare(with_data(other))
    assert starts.read(run)[-1]["changed"] == {"task.prompts": [str(one), str(other)]}
    other.write_text(lines("yes", "now"))
    with pytest.raises(Refusal, match=r"the task's data \(changed since\): enters the numbers"):
        build.prepare(with_data(other))


def test_pretrained_folders_may_move_and_not_change(run, tmp_path):
    """Of two fine-tunings of one shape even the sizes of all files are the same."""
    model, folder = gpt_neox.make(gpt_neox.Config(158, 16, 1, 2, 32)), tmp_path / "folder"
    for place, seed in ((folder, 0), (tmp_path / "other", 1)):
        export.save(place, model, random_params(model, seed), token_ids={})
    shutil.copytree(folder, tmp_path / "moved")
    given = {"model.family": "pretrained", "pretrained.base": str(folder)}
    prepare(run, **given)
    parts = build.checked(config_of(run, **given))[1]
    (run / "checkpoints" / "sft" / "250").mkdir(parents=True)
    parts[0].record("sft")
    prepare(run, **given | {"pretrained.base": str(tmp_path / "moved")})
    with pytest.raises(
        Refusal, match=r"pretrained\.base \(other content than there\): enters the numbers"
    ):
        prepare(run, **given | {"pretrained.base": str(tmp_path / "other")})


@pytest.mark.parametrize("text", ["", '{"rlhf": {"lag"', "[1]", "\xff\xfe"])
def test_a_damaged_config_is_told_and_written_again(begun, capsys, text):
    """The stages themselves say what they were made with."""
    (begun / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(Refusal, match=r"config\.json is damaged"):
        build.of_directory(begun)
    with pytest.raises(Refusal, match=r"rlhf\.lag \(1 there, 2 now\)"):
        prepare(begun, **{"rlhf.lag": 2})
    assert (begun / "config.json").read_bytes() == text.encode("latin1")
    prepare(begun)
    assert "config.json is damaged" in capsys.readouterr().err
    assert stored(begun)["rlhf"]["lag"] == 1
    assert (begun / "config.json.damaged").read_bytes() == text.encode("latin1")


def test_a_damaged_config_of_an_older_run_is_refused(begun):
    for path in begun.rglob(stage_records.FILE):
        path.unlink()
    (begun / "config.json").write_text("")
    with pytest.raises(
        Refusal,
        match=r"config\.json is damaged.+nothing else says what the stage sft was made with",
    ):
        prepare(begun)


def test_a_damaged_record_of_a_stage_is_named(begun):
    (begun / "checkpoints" / "rlhf" / stage_records.FILE).write_text('{"config": ')
    with pytest.raises(Refusal, match=r"checkpoints/rlhf/\.made_with\.json.+is damaged"):
        prepare(begun)


def test_a_run_of_an_older_version_goes_on(begun, capsys):
    """It has neither records of its stages nor digests nor the newest keys."""
    for path in [*begun.rglob(stage_records.FILE), begun / "starts.jsonl"]:
        path.unlink()
    values = stored(begun)
    for node, key in (("rlhf", "ledger_gold"), ("rlhf", "evaluate_at"), ("pretrained", "gold")):
        del values[node][key]
    del values["digests"], values["begin"]
    (begun / "config.json").write_text(json.dumps(values))
    with pytest.raises(Refusal, match=r"rlhf\.lag \(1 there, 2 now\)"):
        prepare(begun, **{"rlhf.lag": 2})
    capsys.readouterr()
    prepare(begun)
    assert not capsys.readouterr().err
    assert stored(begun)["rlhf"]["ledger_gold"] is False


def test_a_key_that_the_code_no_longer_has_is_refused_by_name(begun):
    for path in begun.rglob(stage_records.FILE):
        path.unlink()
    values = stored(begun)
    values["rlhf"]["whiten"] = True
    (begun / "config.json").write_text(json.dumps(values))
    with pytest.raises(Refusal, match=r"rlhf\.whiten \(True there, no such key now\)"):
        prepare(begun)


def test_other_code_is_one_line(begun, capsys, monkeypatch):
    monkeypatch.setattr(digests, "digest_code", lambda *_: "another")
    prepare(begun)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the code differs from that which made versions up to 16 of rlhf" in err


def test_another_environment_is_told_once(begun, capsys, monkeypatch):
    """With the line of the start before, whose own differences are not told again."""
    there = environment.snapshot()
    monkeypatch.setattr(environment, "snapshot", lambda: there | {"cores": 4711})
    prepare(begun)
    assert "the number of cores was" in capsys.readouterr().err
    assert starts.read(begun)[-1]["differences"] == [
        f"the number of cores was {there['cores']} and is 4711"
    ]
    prepare(begun)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("mesh", "told"), [({}, True), ({"mesh.data": 2}, False)], ids=["same mesh", "another mesh"]
)
def test_another_number_of_devices_agrees_to_rounding(begun, capsys, monkeypatch, mesh, told):
    """Told once: with the mesh where that is another. Both are written down."""
    there = environment.snapshot()
    monkeypatch.setattr(environment, "snapshot", lambda: there | {"num_devices": 4711})
    prepare(begun, **mesh)
    err = capsys.readouterr().err
    assert err.count("to rounding only") == 1
    assert "numbers may be others" not in err
    assert ("the number of devices was" in err) == told
    assert starts.read(begun)[-1]["differences"] == [
        f"the number of devices was {there['num_devices']} and is 4711"
    ]


def test_a_start_says_who_and_where(run):
    prepare(run)
    line = starts.read(run)[-1]
    assert {
        "date",
        "pid",
        "host",
        "command",
        "version",
        "commit",
        "environment",
        "mesh",
        "digests",
        "at",
        "changed",
    } <= line.keys()
    assert line["environment"]["versions"].keys() == set(environment.PACKAGES)
    assert line["at"] == {}


def test_a_job_that_only_reads_writes_nothing(begun):
    before = bytes_of(begun)
    config = config_of(begun, job="evaluate", **{"evaluate.num_prompts": 256})
    with pytest.raises(Refusal):  # the checkpoints here are empty
        build.run(config)
    assert bytes_of(begun) == before
