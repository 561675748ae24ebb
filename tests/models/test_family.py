"""Families of decoders found by name: of the package, of a user's own module or file; one line for
what is none.
"""

import dataclasses

import pytest

from rlhf_jax import build
from rlhf_jax.models import gpt_neox
from rlhf_jax.models.common import family
from rlhf_jax.refusal import ComponentError, Refusal

OWN = """
from dataclasses import dataclass
from rlhf_jax.models import gpt_neox

@dataclass(frozen=True)
class Config(gpt_neox.Config):
    extra: int = 3

@dataclass(frozen=True)
class Wide(gpt_neox.Config):
    breadth: int = 2

PRESETS = {
    "small": Config(0, 16, 1, 2, 32),
    "wide": Wide(0, 32, 1, 2, 64),
}

def make(config):
    return gpt_neox.make(config)

def make_wide(config: Wide):
    return gpt_neox.make(config)

def broken(config: Wide):
    return {}["missing"]

def no_model(config: Wide):
    return 3

class Short(gpt_neox.GPTNeoX):
    def head(self, params, hidden):
        return super().head(params, hidden)[..., 1:]

class Wrong(gpt_neox.GPTNeoX):
    def apply(self, params, tokens):
        return tokens, None

class NoCache(gpt_neox.GPTNeoX):
    def init_cache(self, batch_size, max_columns):
        raise RuntimeError("no cache")

def short(config: Wide):
    return Short(config)

def wrong(config: Wide):
    return Wrong(config)

def no_cache(config: Wide):
    return NoCache(config)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return str(path)


def test_a_family_of_the_package():
    found = family.find("gpt_neox")
    assert (found.config, found.maker, found.usual) == (
        gpt_neox.Config,
        gpt_neox.make,
        "quickstart",
    )


def test_a_file_is_a_family_and_a_function_of_it_another(own):
    found = family.find(own)
    assert (found.config.__name__, list(found.presets), found.usual) == (
        "Config",
        ["small"],
        "small",
    )
    wide = family.find(f"{own}:make_wide")
    assert (wide.config.__name__, list(wide.presets)) == ("Wide", ["wide"])
    assert build.model(f"{own}:make_wide").breadth == 2


def test_the_family_of_a_model_is_no_published_one(tmp_path):
    """A module of one's own that is called as a published family is not exported as that."""
    path = tmp_path / "llama.py"
    path.write_text(OWN)
    found = family.find(str(path))
    model = found.make(found.config(11, 16, 1, 2, 32, rotary_fraction=1.0))
    assert model.family.startswith("llama@"), "the name of the module that a file is loaded as"
    assert (
        gpt_neox.make(gpt_neox.Config(11, 16, 1, 2, 32, rotary_fraction=1.0)).family == "gpt_neox"
    )


WRONG = [
    ("", "json", "model.family is 'json', which is no family of decoders: it has no PRESETS"),
    ("PRESETS = {}", "", "which is no family of decoders"),
    ("PRESETS = {'a': 1}\ndef make(config): pass", "", "has no dataclass Config"),
    ("PRESETS = {'a': 1}", "", "has no function make"),
    (
        OWN.replace('"small": Config', '"small": gpt_neox.Config'),
        "",
        "none of whose PRESETS is a Config",
    ),
    (
        "from dataclasses import dataclass\n@dataclass\nclass Config:\n    width: int = 3\n"
        "PRESETS = {'a': Config()}\ndef make(config): pass",
        "",
        "whose preset 'a' has no vocab_size, num_layers",
    ),
]


@pytest.mark.parametrize(("text", "name", "message"), WRONG)
def test_what_is_no_family_is_one_line(tmp_path, text, name, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(Refusal, match=message) as raised:
        family.find(name or str(path))
    assert "\n" not in str(raised.value)


def test_a_family_whose_code_breaks_is_named(own):
    shape = family.find(f"{own}:broken").presets["wide"]
    with pytest.raises(
        ComponentError,
        match=r"making the model family .*mine\.py:broken raised: KeyError: 'missing'",
    ):
        family.find(f"{own}:broken").make(shape)
    with pytest.raises(
        ComponentError, match=r"mine\.py:no_model makes a int without family, vocab_size"
    ):
        family.find(f"{own}:no_model").make(shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"head gave shape \(2, 3, 10\) for tokens \(2, 3\); accepted: \(2, 3, 11\)"),
        ("wrong", r"raised in apply: TypeError: .*takes 3 positional arguments but 5 were given"),
        (
            "no_cache",
            r"raised in apply with a cache: RuntimeError: no cache \(.*mine\.py, line \d+\)",
        ),
    ],
)
def test_functions_of_other_signatures_and_shapes_are_named(own, name, message):
    found = family.find(f"{own}:{name}")
    shape = dataclasses.replace(found.presets["wide"], vocab_size=11, rotary_fraction=1.0)
    with pytest.raises(ComponentError, match=rf"^the model family .*mine\.py:{name}:? {message}"):
        found.checked(shape)
    right = family.find(f"{own}:make_wide")
    assert right.checked(shape).vocab_size == 11
