"""`experiments.compile`: the calls of a config, compiled from shapes and read; one line for what
cannot be compiled.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax import build
from rlhf_jax.building.from_shapes import shaped
from rlhf_jax.cli import compile as command
from rlhf_jax.cli import run
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.common import planning

ROOT = Path(__file__).parents[2]
TINY = "--config=configs/tiny.py"
TLDR = "--config=configs/tldr/online_dpo.py"
CPU = "--topology=cpu:8"
SHARDED = "--config.mesh.fsdp=8"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_table_and_all_figures(capsys, tmp_path):
    output = tmp_path / "figures.json"
    arguments = [TINY, CPU, SHARDED, "--calls=publish,reference", f"--output={output}"]
    assert command.main([*arguments, f"--hlo={tmp_path / 'hlo'}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cpu:8: 8 x cpu of 4 GB; 8 prompts x 4 a round, 18 + 27 tokens\n")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line[:1] in (["publish"], ["reference"])] == [
        "publish",
        "reference",
    ]
    assert ["all-gather", "outside", "loops"] in [line[:3] for line in lines]
    figures = json.loads(output.read_text())
    assert (figures["topology"], figures["num_devices"]) == ("cpu:8", 8)
    assert not figures["command"].startswith("'"), "it can be pasted"
    publish, reference = figures["calls"]
    # A copy within a device: as much as the params, and nothing over links.
    assert publish["compiled"]["link_bytes"] == 0
    assert publish["expected_bytes"] is None
    assert reference["expected_bytes"] > 0
    gathered = [
        found["times"] * found["operand_bytes"] * 7
        for found in reference["compiled"]["collectives"]
        if found["kind"] == "all-gather"
    ]
    assert sum(gathered) > 0
    assert (tmp_path / "hlo" / "reference.hlo").read_text().startswith("HloModule")


def test_two_hosts_share_params_and_gather_them_to_publish(capsys, tmp_path):
    output = tmp_path / "figures.json"
    hosts = ["--topology=cpu:2x4", "--config.mesh.fsdp=4", "--config.mesh.fsdp_hosts=-1"]
    assert command.main([TINY, *hosts, "--calls=gather,publish", f"--output={output}"]) == 0
    assert capsys.readouterr().out.startswith("cpu:2x4: 8 x cpu of 4 GB on 2 hosts; ")
    gather, publish = (each["compiled"] for each in json.loads(output.read_text())["calls"])
    # A shard of an eighth goes to where it is needed, and another one comes.
    assert {each["kind"] for each in gather["collectives"]} == {"collective-permute", "all-gather"}
    assert (
        gather["link_bytes"] == sum(2 * each["operand_bytes"] for each in gather["collectives"]) / 2
    )
    assert publish["link_bytes"] == 0
    # An eighth of the params of a host's two shards each; what is not sharded is in both.
    assert gather["output_bytes"] <= publish["argument_bytes"]


def test_the_calls_are_the_run_s_own():
    """What is lowered from shapes is, to the letter, what a run lowers that has its params."""
    config = run.parse(["", TINY, SHARDED])
    found = shaped(config, jax.devices())
    workspace, stages, algorithm = build.parts(config)
    spec = planning.spec_of(workspace, stages, algorithm)
    real = rlhf.Program(spec, jax.tree.map(np.zeros_like, spec_params(found)))
    assert found.program.compiled_names == real.compiled_names
    for call in real.compiled_names:
        assert found.program.lowered(call).as_text() == real.lowered(call).as_text(), call


def spec_params(found):
    """Zeros like the reference's params."""
    return jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), found.program.reference_params
    )


def test_fewer_layers_make_smaller_models(capsys):
    config = run.parse(["", TLDR])
    one, two = (shaped(config, jax.devices(), num_layers=n) for n in (1, 2))
    assert "every model has 1 layer(s)" in one.notices
    assert any(line.startswith("plan=fit: every call on the run's mesh") for line in one.notices)
    assert one.problem.shapes["policy"].num_layers == 1
    assert two.problem.shapes["policy"].num_layers == 2
    leaves = [len(jax.tree.leaves(each.program.reference_params)) for each in (one, two)]
    assert leaves[0] < leaves[1]


def test_a_published_shape_stands_for_a_folder_that_is_not_here():
    shapes = {"policy_shape": "llama/llama-3.2-1b", "reward_model_shape": "llama/llama-3.2-3b"}
    given = [f"--config.pretrained.{key}={shape}" for key, shape in shapes.items()]
    config = run.parse(["", "--config=configs/no_robots/online_dpo.py", *given])
    found = shaped(config, jax.devices(), num_layers=2)
    assert found.problem.shapes["policy"].width == 2048
    assert found.problem.shapes["reward"].width == 3072
    assert found.program.spec.model.dtype == "bfloat16"


REFUSED = [
    ([TINY, "--topology=abacus"], "--topology is 'abacus'; accepted: v5e:2x4"),
    ([TINY, CPU, "--calls=draw"], "--calls has 'draw'; accepted: generate, reference, reward,"),
    ([TINY, CPU, "--num_layers=-1"], "--num_layers is -1; accepted: 1 or more"),
    ([TINY, CPU, "--config.mesh.fsdp=3", "--calls=publish"], "which does not divide"),
    (["--config=configs/tldr/sft.py", CPU], "job is 'sft'; the calls of the stage rlhf"),
    (
        ["--config=configs/gsm8k/ppo.py", CPU, "--config.pretrained.policy_shape="],
        "the policy's shape is that of the folder 'models/rho-1b-sft-gsm8k', which is not here; "
        "--config.pretrained.policy_shape=FAMILY/PRESET",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_compiled_is_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_call_that_does_not_fit_says_by_how_much():
    """TL;DR's 410m on one CPU of 4 GB: the planner's figure of what stays is enough to say so."""
    from rlhf_jax.cli.tables import compile as table
    from rlhf_jax.planner.compiled.reading import Reading

    found = shaped(run.parse(["", TLDR]), jax.devices(), num_layers=1)
    reading = Reading("train_policy", 10**9, 10**9, 6 * 10**9, 10**9, 10**9, 1, 1, (), 1.0, "")
    rows = [table.Row("train_policy", reading, "", 5e9, 1.0)]
    first, *rest = table.verdict(found, rows)
    held = found.problem.formulas().held_bytes
    stays = held + found.problem.resident_bytes(planning.Plan(table.placements(found)))
    assert first == (
        f"train_policy does not fit by {table.size(6e9 + stays - 0.92 * 4e9)}: it needs 6 GB beside "
        f"{table.size(stays)} that stay (with {table.size(held)} of the gold model), of 3.68 GB"
    )
    assert any(line.startswith("the planner: ") for line in rest)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs rlhf_jax[tpu-compile]"
)
def test_a_tpu_is_compiled_for_without_one(tmp_path):
    """In a process of its own: libtpu reads the environment when it is loaded."""
    output = tmp_path / "figures.json"
    arguments = [TINY, "--topology=v5e:2x4", SHARDED, "--calls=publish", f"--output={output}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compile", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("v5e:2x4: 8 x tpu-v5e of 16 GB")
    assert json.loads(output.read_text())["versions"].keys() == {"jax", "libtpu"}
