"""`experiments.plan`: a plan for a config, its picture and advice; and one line for what cannot be
planned.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax import build
from rlhf_jax.cli import plan, run
from rlhf_jax.devices.mesh import over_hosts
from rlhf_jax.devices.placement import ResolvedPlan, parse
from rlhf_jax.planner.costs import hardware
from rlhf_jax.stages.settings.rlhf import check_placements

QUICKSTART = "--config=configs/quickstart.py:algorithm=ppo"
TLDR = "--config=configs/tldr/ppo.py"
NO_GOLD = "--config.pretrained.gold="


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def planned(capsys, tmp_path, *arguments: str) -> tuple[int, str, str]:
    status = plan.main([*arguments, f"--output={tmp_path / 'pictures' / 'plan.png'}"])
    return status, *capsys.readouterr()


def test_a_plan_its_picture_and_one_sentence_of_advice(capsys, tmp_path):
    """The policy's vocabulary is given: nothing of the paper's data or models is here."""
    status, out, err = planned(capsys, tmp_path, TLDR, "--devices=2", "--hardware=h100")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("2 x h100; policy 0.405B,")
    assert "512 prompts x 2 a round" not in out, "PPO samples one"
    calls = ("generate", "reference", "value", "reward", "train_policy", "train_critic")
    assert all(any(line.startswith(f"{call} ") for line in lines) for call in calls)
    assert "s a round; devices hold up to" in out
    assert (
        sum(line.startswith(("Stay synchronous:", "Sample asynchronously:")) for line in lines) == 1
    )
    text = next(line for line in lines if line.startswith("run it:")).split('"')[1]
    assert set(calls) <= set(parse(text).placements)
    own = next(line for line in out.splitlines() if line.startswith("or on the config's own mesh"))
    placements = parse(own.split('"')[1]).placements
    assert {placement.devices for placement in placements.values()} == {(0, 1)}
    assert placements["train_policy"].mesh_shape == (1, 2, 1), "as the recipe's mesh"
    assert (tmp_path / "pictures" / "plan.png").stat().st_size > 5_000


def test_a_written_plan_is_not_searched_but_told(capsys, tmp_path):
    training = "micro_batches=32 remat"
    written = f"--config.plan=generate: 0-1 tensor=2; train_policy: 0 {training}; train_critic: 1 {training}; others: 0-1"
    status, out, err = planned(capsys, tmp_path, TLDR, "--devices=2", "--hardware=h200", written)
    assert status == 0, err
    assert "run it:" not in out
    row = next(line for line in out.splitlines() if line.startswith("train_critic")).split()
    assert row[1:3] == ["1", "1×1×1"]


REFUSED = [
    ([TLDR, "--hardware=abacus"], "no hardware 'abacus'; there are: a100-40gb, a100-80gb"),
    ([TLDR, "--hardware=h100", "--devices=-2"], "--devices is -2; accepted: 1 or more"),
    ([TLDR, "--hardware=h100", "--profile"], "times the devices at hand"),
    ([TLDR, "--hardware=h100", "--devices=2", "--lengths=nowhere"], "ledger.jsonl is missing"),
    ([TLDR, "--hardware=h100", "--devices=12"], "12 devices do not make whole hosts of 8"),
    ([f"{TLDR}:size=2.8b", "--hardware=tpu-v5e", NO_GOLD], "no plan fits on 1 device of 14.7 GB"),
    (
        [f"{TLDR}:size=2.8b", "--hardware=tpu-v5e"],
        "the gold model takes 13.3 GB of each device, and 7.52 GB while it scores 64 rows "
        "(pretrained.gold_rows_per_batch); in what it leaves no plan fits on 1 device of 1.42 GB",
    ),
    (
        [TLDR, "--hardware=tpu-v5e", "--config.pretrained.gold_dtype=float32"],
        "in what it leaves no plan fits on 1 device of 0 GB",
    ),
    (
        [TLDR, "--hardware=h100", "--config.pretrained.gold_shape="],
        "the gold model's folder 'models/tldr-6.9b-reward' is not here; "
        "--config.pretrained.gold_shape=FAMILY/PRESET",
    ),
    (
        [TLDR, "--hardware=tpu-v5e", "--devices=2", "--config.plan=train_policy: 0; others: 1"],
        "does not fit on device",
    ),
    ([TLDR, "--hardware=h100", "--config.plan=train_policy: 0-3"], "device"),
    (
        [TLDR, "--hardware=h100", "--config.pretrained.reward_model_shape=pythia-1b"],
        "reward_model_shape is 'pythia-1b'; accepted: FAMILY/PRESET",
    ),
    (
        [TLDR, "--hardware=h100", "--config.pretrained.reward_model_shape=gpt_neox/pythia-2b"],
        "accepted presets of gpt_neox: quickstart, tiny,",
    ),
    ([TLDR, "--hardware=h100", "--config.rlhf.lagg=1"], "did you mean 'lag'?"),
    (["--config=configs/nothing.py", "--hardware=h100"], "no config file"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_cannot_be_planned_is_one_line(capsys, tmp_path, arguments, words):
    try:
        status = plan.main([*arguments, f"--output={tmp_path / 'plan.png'}"])
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    assert status == 2
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err, err
    assert not (tmp_path / "plan.png").exists()


def test_a_gold_model_is_told_beside_the_rounds(capsys, tmp_path):
    """Its 6.65 B params in bfloat16, over two devices; and its seconds, of each round in the mean."""
    asked = TLDR, "--devices=2", "--hardware=h100", "--config.rlhf.ledger_gold=True"
    outputs = []
    for more in ((), (NO_GOLD,)):
        status, out, err = planned(capsys, tmp_path, *asked, *more)
        assert (status, err) == (0, "")
        outputs.append(out)
    told, without = outputs
    assert "gold" not in without.partition("picture:")[0]
    heading = told.partition(" x ")[2].partition(";")[2]
    assert ", gold 6.65B;" in heading
    first, second = (line for line in told.splitlines() if line.startswith("gold "))
    assert first.startswith("gold model: 6.65 GB of a device stay beside that, ")
    plain = next(line for line in told.splitlines() if "s a round; devices hold up to" in line)
    seconds, gigabytes = float(plain.split()[0]), float(plain.split("up to ")[1].split()[0])
    assert float(first.split(", ")[1].split()[0]) == pytest.approx(gigabytes + 6.65, abs=0.2)
    of_round, of_evaluation = (float(part.split(" s")[0]) for part in second.split(" in ")[1:])
    assert float(second.rpartition(": ")[2].split()[0]) == pytest.approx(
        seconds + of_round + of_evaluation / 64, rel=0.01
    )


def test_lengths_of_a_run_shorten_the_round(capsys, tmp_path):
    rows = "".join(f'{{"stage": "ledger", "length": {length}}}\n' for length in (5, 7, 9, 11))
    (tmp_path / "ledger.jsonl").write_text(rows)
    seconds = []
    for more in ((), (f"--lengths={tmp_path}",)):
        status, out, err = planned(
            capsys, tmp_path, QUICKSTART, "--devices=1", "--hardware=h100", *more
        )
        assert status == 0, err
        row = next(line for line in out.splitlines() if line.startswith("generate"))
        seconds.append(float(row.split()[5]))
    assert seconds[1] < 0.6 * seconds[0]


@pytest.fixture
def hosts_of_two(monkeypatch):
    """H100 in hosts of two devices, which are planned for in a second."""
    small = dataclasses.replace(hardware.TABLE["h100"], devices_per_host=2)
    monkeypatch.setitem(hardware.TABLE, "h100", small)


def test_plans_over_hosts_are_those_that_a_run_takes(capsys, tmp_path, hosts_of_two):
    """Both that are printed: the devices are those of a host, and the hosts multiply data."""
    asked = QUICKSTART, "--devices=4", "--hardware=h100"
    status, out, err = planned(capsys, tmp_path, *asked)
    assert (status, err) == (0, "")
    assert out.startswith("2 hosts of 2 x h100; ")
    texts = [line.split('"')[1] for line in out.splitlines() if "--config.plan=" in line]
    assert len(texts) == 2
    assert "plan=fit" not in out, "a run on several hosts refuses it"
    _, settings, algorithm = build.parts(run.parse(["", QUICKSTART]))
    grid = np.array(jax.devices()[:4]).reshape(2, 2)
    for text in texts:
        where = ResolvedPlan(over_hosts(grid, (2, 1, 1)), grid, parse(f"{text}; others: 0-1"))
        check_placements(settings.rlhf, algorithm, where)
        for call, placement in where.plan.placements.items():
            assert where.mesh(call).devices.size == 2 * len(placement.devices)
    assert {
        device for text in texts for p in parse(text).placements.values() for device in p.devices
    } == {0, 1}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("plan=train_policy: 2-3; others: 0-1", "accepted: different ones of 0 ... 1"),
        ("mesh.fsdp_hosts=-1", "mesh.fsdp_hosts is -1: a plan over 2 hosts of 2 devices"),
    ],
)
def test_plans_that_hosts_cannot_run_are_refused(capsys, tmp_path, hosts_of_two, setting, words):
    asked = QUICKSTART, "--devices=4", "--hardware=h100", f"--config.{setting}"
    status, _, err = planned(capsys, tmp_path, *asked)
    assert status == 2
    assert words in err
