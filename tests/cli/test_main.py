"""The console script: its commands and their help, a wrong name, and configs by their short names
in any folder.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax import config_modules
from rlhf_jax.cli import command, main, run, sweep
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps import cells

ROOT = Path(__file__).parents[2]


def test_help_lists_every_command_with_a_line(capsys):
    assert main.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("run", "sweep", "plan", "evaluate", "export", "report", "generate", "compare"):
        assert (
            len([line for line in lines if line.split()[:1] == [name] and len(line.split()) > 3])
            == 1
        )
        assert (Path(main.__file__).parent / f"{name}.py").exists()
    assert main.main([]) == 2
    assert "usage: rlhf-jax COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["report", "generate", "compare"])
def test_help_of_a_command_needs_no_jax(name):
    """An answer at once: imports of jax, matplotlib and flax take seconds."""
    code = (
        "import sys\n"
        "from rlhf_jax.cli import main\n"
        "try:\n"
        f"    main.main(['{name}', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "sys.stderr.write(' '.join({'jax', 'matplotlib', 'flax'} & set(sys.modules)))\n"
    )
    code = code.replace("main.main(", "sys.argv[0] = 'rlhf-jax'; main.main(")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"usage: rlhf-jax {name}" in done.stdout
    assert done.stderr == ""


def test_a_wrong_name_suggests_the_nearest(capsys):
    assert main.main(["swep", "--config=x"]) == 2
    assert capsys.readouterr().err == "error: no command 'swep'; did you mean 'sweep'?\n"
    assert main.main(["quickstart"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: no command 'quickstart'; accepted: run, sweep, plan"
    )


def test_a_command_gets_the_arguments_and_names_itself_by_the_script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/rlhf-jax", "report", "--directory=x"])
    seen = []

    def start():
        seen.append((list(sys.argv), command.program("report")))
        raise SystemExit(0)

    monkeypatch.setattr("rlhf_jax.cli.report.start", start)
    with pytest.raises(SystemExit):
        main.main()
    assert seen == [(["rlhf-jax", "--directory=x"], "rlhf-jax report")]


def test_a_command_of_experiments_names_itself_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "experiments" / "run.py")])
    assert command.program("run") == "python -m experiments.run"


def helped(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        run.main(["run", *argv])
    assert not left.value.code
    return capsys.readouterr().out


def test_help_is_usage_and_beside_a_config_its_keys(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # short names need no clone
    usage = helped(capsys, "--help")
    assert usage.startswith("usage: ")
    assert "tldr/ppo" in usage.replace("\n", " ")
    assert "--config.seed" not in usage
    for named in (
        ["quickstart"],
        ["--config=quickstart"],
        [f"--config={ROOT}/configs/quickstart.py"],
    ):
        said = helped(capsys, *named, "--help", "--config.rlhf.lag=3")
        assert said.startswith(usage.rstrip("\n"))
        assert "--config.rlhf.lag=3\n" in said
        assert "--config.seed=0\n" in said
    assert "--config.rlhf.samples_per_prompt=1\n" in helped(capsys, "tldr/ppo:size=1b", "--help")


def test_help_of_plan_lists_keys_too(capsys):
    from rlhf_jax.cli import plan

    assert plan.main(["--help"]) == 0
    alone = capsys.readouterr().out
    assert plan.main(["quickstart", "--help", "--config.seed=3"]) == 0
    beside = capsys.readouterr().out
    assert beside.startswith(alone)
    assert "--config.seed=3\n" in beside
    assert "--config.seed" not in alone


def test_a_name_is_no_value_of_the_flag_before_it():
    assert run.split(["run", "quickstart", "--config.seed", "3"]) == (
        "quickstart",
        ["--config.seed", "3"],
    )
    assert run.split(["run", "--config.seed=3", "quickstart"]) == (
        "quickstart",
        ["--config.seed=3"],
    )
    assert run.split(["run", "--config", "a.py", "--config.seed", "3"]) == (
        "a.py",
        ["--config.seed", "3"],
    )
    with pytest.raises(Refusal, match=r"unknown argument 'more' beside --config=a\.py"):
        run.split(["run", "--config=a.py", "more"])
    with pytest.raises(Refusal, match="no config is given"):
        run.split(["run", "--config.seed", "quickstart"])


def test_a_wrong_short_name_lists_short_names_outside_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        Refusal,
        match=r"no config file 'quikstart'; did you mean quickstart\?; there are: addition, gsm8k",
    ):
        run.parse(["run", "quikstart"])


def test_a_study_has_a_short_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = cells.load("studies/grpovi:tiny")
    assert study.report_updates == 2
    assert cells.Cells(cells.load("studies/grpovi")).path == Path("runs/studies/grpovi/cells.jsonl")
    with pytest.raises(Refusal, match=r"no study 'studies/grpo'; there are: .*studies/grpovi, "):
        cells.load("studies/grpo")
    for given in ([], ["studies/grpovi", "--config=x.py"]):
        with pytest.raises(SystemExit) as left:
            sweep.main(given)
        assert left.value.code == 2
        assert "a study is given by its name or by --config=FILE" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)
    assert cells.Cells(cells.load("studies/grpovi")).path == Path(
        "experiments/studies/grpovi/cells.jsonl"
    )
    assert config_modules.path_of("studies/grpovi") == "configs/studies/grpovi.py"
