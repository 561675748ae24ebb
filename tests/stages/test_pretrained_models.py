"""Published folders in a run: first params, SFT policy, reward model and gold judge; what is
exported and evaluated again.
"""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import quickstart
from rlhf_jax import build
from rlhf_jax.cli import evaluate as evaluate_command
from rlhf_jax.cli import export as export_command
from rlhf_jax.devices import memory, placement
from rlhf_jax.models import gpt_neox, llama
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.costs import hardware
from rlhf_jax.planner.simulation.plan_memory import gigabytes
from rlhf_jax.pretrained import export
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages import comparisons, pipeline, reward_model, rlhf, sft
from rlhf_jax.stages.checks import supervised_memory
from rlhf_jax.stages.common import planning, pretrained_models
from rlhf_jax.stages.lora import base
from rlhf_jax.stages.settings.stages import DPOConfig
from rlhf_jax.types import Placement
from tests.models.families import random_params

NEOX = gpt_neox.Config(158, 16, 1, 2, 32, rotary_fraction=1.0)
LLAMA = llama.Config(163, 24, 1, 2, 1, 40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Published folders: a policy, a reward model of another family for the same tokens, and a gold
    one.
    """
    place = tmp_path_factory.mktemp("published")
    policy, reward = gpt_neox.make(NEOX), llama.make(LLAMA)
    export.save(
        place / "policy",
        policy,
        random_params(policy, 0),
        token_ids={"max_position_embeddings": 77},
    )
    for seed, name in enumerate(("reward", "gold")):
        model = ValueModel(reward)
        params = model.init_from(random_params(reward, seed), jax.random.key(seed))
        export.save(place / name, reward, params, token_ids={"pad_token_id": 0})
    return place


def tiny_config(directory, **pretrained):
    """The quickstart in the smallest sizes; its model is the folder's where there is one."""
    config = quickstart.get_config()
    config.directory = str(directory)
    config.pretrained.update({key: str(value) for key, value in pretrained.items()})
    if "base" in pretrained or "sft" in pretrained:
        config.model.family = "pretrained"
    else:
        config.model.update({"width": 16, "num_layers": 1, "num_heads": 2, "ffn_width": 32})
    config.sft.num_updates, config.sft.checkpoint_every, config.sft.rows_per_update = 2, 2, 8
    config.comparisons.num_train, config.comparisons.num_heldout = 64, 64
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 2, 16
    config.reward_model.standardize_prompts = 32
    config.rlhf.total_prompts, config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = (
        24,
        8,
        2,
    )
    config.rlhf.evaluate_every, config.rlhf.checkpoint_every, config.rlhf.keep_checkpoints = 0, 1, 4
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 16
    config.best_of_n, config.best_of_n_prompts = (1, 2), 16
    return config


def equal(one, other):
    one, other = flatten_dict(one), flatten_dict(other)
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A pipeline whose policy begins with a folder, and whose reward model and gold are folders."""
    directory = tmp_path_factory.mktemp("run") / "run"
    config = tiny_config(
        directory, base=folders / "policy", reward_model=folders / "reward", gold=folders / "gold"
    )
    prepared = build.prepare(config)
    pipeline.job(*prepared)
    return prepared


def test_the_folder_s_shape_is_the_run_s(run, folders):
    workspace, *_ = run
    assert dataclasses.asdict(workspace.model.config) == dataclasses.asdict(NEOX)
    stored = json.loads((workspace.directory / "config.json").read_text())
    assert stored["model"]["family"] == "gpt_neox"
    assert stored["model"]["width"] == 16


def test_sft_begins_with_the_folder(run, folders):
    workspace, stages, _ = run
    first = sft.first_state(sft.supervised_stage(workspace, stages.sft))
    assert equal(first.params, random_params(workspace.model, 0))
    assert int(first.step) == 0
    assert not equal(sft.load(workspace), first.params)


def test_the_published_reward_is_read_and_only_measured(run):
    workspace, stages, _ = run
    reward = rlhf.make_reward(workspace, stages)
    assert not (workspace.directory / "checkpoints" / "reward_model").exists()
    assert not (workspace.directory / "comparisons").exists()
    assert reward.params["backbone"]["embed_tokens"]["embedding"].shape == (163, 24)
    assert "lm_head" not in reward.params["backbone"]
    assert reward.std not in (0.0, 1.0)


def test_gold_is_the_published_judge(run):
    workspace, *_ = run
    lines = [
        json.loads(line)
        for line in (workspace.directory / "metrics.jsonl").read_text().splitlines()
    ]
    last = [line for line in lines if line.get("of") == "rlhf"][-1]
    assert {"win_rate", "win_rate_strict", "gold_mean"} <= last.keys()
    texts = ["good .", "bad bad ."]
    prompts = workspace.stream("heldout", "evaluate").texts(0, 2)
    gold = workspace.gold(prompts, texts, [True, False])
    judge = pretrained_models.Judge(workspace.pretrained, workspace.tokenizer, workspace.mesh)
    alone = [judge([p], [t], [f])[0] for p, t, f in zip(prompts, texts, (True, False), strict=True)]
    np.testing.assert_allclose(gold, alone, rtol=1e-5)
    assert gold[0] != pytest.approx(workspace.task.judge(prompts[0], texts[0], True))
    assert workspace.gold(prompts[:1], texts[:1], [True]) != pytest.approx(
        workspace.gold(prompts[:1], texts[:1], [False])
    )


def test_every_kept_policy_is_evaluated_again(run, capsys):
    workspace, *_ = run
    assert rlhf.versions(workspace) == [1, 2, 3]
    assert evaluate_command.main([f"--directory={workspace.directory}"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in table[1:]] == [0, 1, 2, 3]
    again = [
        json.loads(line)
        for line in (workspace.directory / evaluate_command.FILE).read_text().splitlines()
    ]
    lines = [
        json.loads(line)
        for line in (workspace.directory / "metrics.jsonl").read_text().splitlines()
    ]
    during = {line["update"]: line for line in lines if line.get("of") == "rlhf"}
    for version in (0, 3):  # evaluated in the run too: the same samples, so the same figures
        for name in ("win_rate", "gold_mean", "kl", "reward_mean"):
            assert again[version][name] == pytest.approx(during[version][name], rel=1e-5), (
                version,
                name,
            )


def test_an_evaluation_takes_other_settings_without_changing_the_run(run, capsys):
    workspace, *_ = run
    before = (workspace.directory / "config.json").read_text()
    arguments = [
        f"--directory={workspace.directory}",
        "--config.evaluate.max_completion_tokens=3",
        "--config.pretrained.gold=",
    ]
    assert evaluate_command.main(arguments) == 0
    assert (workspace.directory / "config.json").read_text() == before
    last = json.loads((workspace.directory / evaluate_command.FILE).read_text().splitlines()[-1])
    assert last["completion_length"] <= 3
    assert last["changed"] == {"evaluate.max_completion_tokens": 3, "pretrained.gold": ""}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.evaluate.number=3"], "config.evaluate has no key 'number'"),
        (["--config.evaluate.num_prompts=many"], "evaluate.num_prompts is 'many'; accepted: int"),
        (["--prompts=3"], "unknown argument '--prompts'"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(run, capsys, arguments, words):
    assert evaluate_command.main([f"--directory={run[0].directory}", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert words in errors[0]


def test_nothing_is_compiled_after_the_first_round(run):
    workspace, *_ = run
    lines = [
        json.loads(line)
        for line in (workspace.directory / "metrics.jsonl").read_text().splitlines()
    ]
    timing = next(
        line for line in lines if line.get("kind") == "timing" and line["stage"] == "rlhf"
    )
    assert timing["first_round_programs"] > 3
    assert timing["later_programs"] == 0


def test_a_run_of_an_older_version_takes_the_defaults_of_newer_nodes(run, tmp_path):
    stored = json.loads((run[0].directory / "config.json").read_text())
    del stored["pretrained"], stored["rlhf"]["keep_checkpoints"], stored["tokenizer"]["bos"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    workspace, stages, _ = build.of_directory(tmp_path)
    assert workspace.pretrained == pretrained_models.Config()
    assert stages.rlhf.keep_checkpoints == 2


def test_an_exported_policy_begins_another_run_bitwise(run, tmp_path, capsys):
    workspace, *_ = run
    to = tmp_path / "policy"
    assert (
        export_command.main([f"--directory={workspace.directory}", f"--to={to}", "--version=2"])
        == 0
    )
    written = json.loads((to / "config.json").read_text())
    assert (
        written["max_position_embeddings"],
        written["eos_token_id"],
        written["torch_dtype"],
    ) == (77, 1, "float32")
    card = (to / "README.md").read_text()
    assert ": version 2 of the policy" in card
    assert f"| Base | {workspace.pretrained.base} (gpt_neox, " in card
    assert "| Lag | " in card
    assert "no evaluation of this version" in card
    again = build.prepare(tiny_config(tmp_path / "again", sft=to))[0]
    assert equal(sft.load(again), rlhf.load(workspace, 2)[0])
    assert export_command.main([f"--directory={workspace.directory}", f"--to={to}"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (
        export_command.main([f"--directory={workspace.directory}", f"--to={to}2", "--version=9"])
        == 2
    )
    assert "has no checkpoint 9; there are: 1, 2, 3" in capsys.readouterr().err


def test_a_reward_model_is_exported_and_used(run, folders, tmp_path):
    workspace, *_ = run
    to = tmp_path / "reward"
    assert (
        export_command.main(
            [f"--directory={workspace.directory}", f"--to={to}", "--stage=reward_model"]
        )
        == 0
    )
    published = reward_model.load(workspace)[0]
    model = pretrained_models.classifier(str(to))
    assert equal(pretrained_models.load_classifier(str(to), model, workspace.mesh), published)


def test_given_pairs_are_relabelled_by_gold(folders, tmp_path, monkeypatch):
    """Two pairs that gold orders otherwise or alike: the first is turned round, with its tokens; a
    tie stays as it was.
    """
    workspace, *_ = build.prepare(
        tiny_config(tmp_path / "run", sft=folders / "policy", gold=folders / "gold")
    )
    words = workspace.task.vocabulary[:3]
    prompt = workspace.task.prompt("train", 0)
    pairs = [
        (prompt, words[0], words[1]),
        (prompt, words[1], words[2]),
        (prompt, words[0], words[0]),
    ]
    scores = workspace.gold([prompt] * 3, words, [True] * 3)
    found, agreement = comparisons.relabelled(workspace, comparisons.own_pairs(workspace, pairs))
    by_word = dict(zip(words, scores, strict=True))
    for (_, one, other), line in zip(pairs, found, strict=True):
        better = other if by_word[other] > by_word[one] else one
        assert line["chosen"] == better
        assert line["chosen_tokens"] == [
            *workspace.tokenizer.encode(better),
            workspace.tokenizer.eos_id,
        ]
        assert line["chosen_gold"] >= line["rejected_gold"]
    assert agreement == pytest.approx(np.mean([by_word[a] >= by_word[b] for _, a, b in pairs]))


def test_a_critic_is_the_published_reward_s_network_and_its_scores_may_stay_as_they_are(
    folders, tmp_path
):
    config = tiny_config(tmp_path / "run", sft=folders / "policy", reward_model=folders / "reward")
    config.algorithm = build.component("algorithms", "ppo")
    config.reward_model.standardize = False
    workspace, stages, algorithm = build.prepare(config)
    params, reward = pipeline.before_rlhf(workspace, stages)
    assert (reward.mean, reward.std) == (0.0, 1.0)
    program = rlhf.make_program(workspace, stages.rlhf, algorithm, reward, params)
    assert equal(program.init(params)["critic"].params, reward.params)
    assert program.spec.critic.model.backbone.width == LLAMA.width


def test_frozen_roles_are_rounded_once_and_training_begins_in_float32(folders, tmp_path):
    """Of a bfloat16 run with a critic: what is held has half the bytes, and what is trained begins
    with the numbers of the folders.
    """
    named = {"sft": "policy", "reward_model": "reward", "gold": "gold"}
    config = tiny_config(tmp_path / "run", **{key: folders / name for key, name in named.items()})
    config.model.dtype = config.pretrained.gold_dtype = "bfloat16"
    config.algorithm = build.component("algorithms", "ppo")
    config.reward_model.standardize = False
    workspace, stages, algorithm = build.prepare(config)
    params, reward = pipeline.before_rlhf(workspace, stages)
    gold = workspace._gold_model._compiled.args[0]
    for held in (params, reward.params["backbone"], gold["backbone"]):
        matrices = [leaf for leaf in jax.tree.leaves(held) if leaf.ndim > 1]
        assert {leaf.dtype.name for leaf in matrices} == {"bfloat16"}
    program = rlhf.make_program(workspace, stages.rlhf, algorithm, reward, params)
    assert program.reference_params is params
    states = base.fresh_states(workspace, program, reward, params, partial(sft.load, workspace))
    assert equal(states["policy"].params, sft.load(workspace))
    assert equal(states["critic"].params, reward_model.load(workspace)[0])
    with pytest.raises(Refusal, match="the policy's first params are bfloat16"):
        program.init(params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.family": "gpt_neox", "model.width": 32}, "model.width is 32, but the folder"),
        ({"model.family": "llama"}, "model.family is 'llama', but the folder"),
        ({"pretrained.base": "nowhere", "pretrained.sft": ""}, "no checkpoint folder 'nowhere'"),
        ({"pretrained.base": "nowhere"}, "accepted: one of them"),
        (
            {"pretrained.sft": "", "model.family": "pretrained"},
            "neither pretrained.base nor pretrained.sft names a folder",
        ),
        ({"pretrained.gold": "nowhere"}, "no checkpoint folder 'nowhere'"),
        ({"pretrained.gold_rows_per_batch": 0}, "pretrained.gold_rows_per_batch is 0"),
        ({"rlhf.keep_checkpoints": 0}, "rlhf.keep_checkpoints is 0"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(folders, tmp_path, changes, words):
    config = tiny_config(tmp_path / "run", sft=folders / "policy")
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=words):
        build.prepare(config)
    assert not (tmp_path / "run").exists()


def test_a_reward_model_of_too_few_tokens(folders, tmp_path):
    model = llama.make(dataclasses.replace(LLAMA, vocab_size=5))
    params = ValueModel(model).init_from(random_params(model, 0), jax.random.key(0))
    export.save(tmp_path / "small", model, params, token_ids={})
    with pytest.raises(ValueError, match=r"knows 5 tokens, but the tokenizer has 158"):
        build.prepare(
            tiny_config(tmp_path / "run", sft=folders / "policy", reward_model=tmp_path / "small")
        )


def with_gold(folders, tmp_path, **changed):
    """A config with published models, gold in float32 on two shards."""
    named = {"sft": "policy", "reward_model": "reward", "gold": "gold"}
    config = tiny_config(tmp_path / "run", **{key: folders / name for key, name in named.items()})
    config.mesh.fsdp = 2
    config.update_from_flattened_dict(changed)
    return config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_counts_gold_as_the_check_at_the_start_does(folders, tmp_path, dtype):
    """And its params are those that the judge holds on each device, to the byte in float32."""
    config = with_gold(folders, tmp_path, **{"pretrained.gold_dtype": dtype})
    h100, num_devices = hardware.TABLE["h100"], len(jax.devices())
    planned = build.problem(config, h100, num_devices)
    workspace, stages, algorithm = build.parts(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "lookup", lambda _: h100)
        of_run = planning.of_run(workspace, stages, algorithm)
    assert planned == dataclasses.replace(of_run, hosts=0)
    assert planned.formulas() == of_run.formulas()
    params = workspace._gold_model._compiled.args[0]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    held = max(memory.bytes_by_device(params, shardings).values())
    assert planned.formulas().held_bytes == pytest.approx(
        held, rel=0 if dtype == "float32" else 0.03
    )


def test_what_gold_takes_is_missing_for_the_rounds(folders, tmp_path, monkeypatch):
    """A device on which all fits but gold: the start of the run says so, and so does a plan."""
    config = with_gold(folders, tmp_path)
    h100 = hardware.TABLE["h100"]
    whole = dataclasses.replace(build.problem(config, h100, 2), hosts=1)
    trainer = Placement((0, 1), (1, 2, 1))
    plan = dataclasses.replace(whole, gold=None).fit(trainer)
    needed = max(dataclasses.replace(whole, gold=None).expected(plan).simulation.memory_bytes)
    room = needed + 0.5 * whole.formulas().held_bytes
    small = dataclasses.replace(h100, memory_bytes=room / h100.usable_memory)
    monkeypatch.setattr(hardware, "lookup", lambda _: small)
    workspace, stages, algorithm = build.parts(config)
    stages = dataclasses.replace(stages, plan=placement.text_of(plan))
    with pytest.raises(Refusal, match=r"^the gold model takes .+ of each device, and .+ while it"):
        planning.check_memory(workspace, stages, algorithm)
    without = dataclasses.replace(
        workspace, pretrained=dataclasses.replace(workspace.pretrained, gold="")
    )
    assert planning.check_memory(without, stages, algorithm) == []


def test_training_beside_a_gold_model_counts_it(folders, tmp_path, monkeypatch):
    """DPO is evaluated by gold. A reward model's comparisons are ordered by it, or given."""
    config = with_gold(folders, tmp_path, **{"pretrained.reward_model": ""})
    workspace, stages, _ = build.parts(config)
    stages = dataclasses.replace(stages, dpo=DPOConfig())
    h100 = hardware.TABLE["h100"]
    monkeypatch.setattr(hardware, "lookup", lambda _: h100)
    held = planning.gold_of_run(workspace, stages).memory(h100, 2, 1)[0]

    def bytes_of_gold(name, names):
        return supervised_memory._here(name, workspace, stages, names).costs.held_bytes

    everything = {"sft", "comparisons", "reward_model", "dpo"}
    assert bytes_of_gold("dpo", everything) == bytes_of_gold("reward_model", everything) == held
    assert bytes_of_gold("sft", everything) == 0
    assert bytes_of_gold("reward_model", {"reward_model"}) == 0
    small = dataclasses.replace(h100, memory_bytes=held)
    monkeypatch.setattr(hardware, "lookup", lambda _: small)
    told = supervised_memory._here("dpo", workspace, stages, everything).notice()
    assert (
        f"that stay there, and the gold model {gigabytes(held)}, of {gigabytes(0.92 * held)};"
        in told
    )


def test_gold_has_the_same_scores_on_shards_of_rows_and_params(folders, tmp_path):
    prompts = ["review of the old inn . the staff was"] * 3
    texts = ["good .", "bad bad .", "a good"]
    found = []
    for fsdp in (1, 4):
        config = with_gold(folders, tmp_path, **{"mesh.fsdp": fsdp})
        found.append(build.parts(config)[0].gold(prompts, texts, [True, False, True]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
