"""Chat templates: text and tokens as transformers has them, where a template comes from, and what a
wrong one says.
"""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rlhf_jax.text import chat, encoding, tokenizers
from tests.pretrained import made

HEADERS = """{{- bos_token }}
{%- macro header(role) %}{{ '<|user|>' + role + '<|assistant|>' }}{% endmacro %}
{%- set day = date if date is defined else "1 May 2024" %}
{%- set first = messages[0] %}
{%- set rest = messages[1:] if first.role == 'system' else messages %}
{{- header('system') + "\\n\\nIt is " ~ day ~ ".\\n" }}
{%- if tools is none and first.role == 'system' %}
    {{- first.content | trim }}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in rest %}
    {{- header(message.role) + "\\n\\n" + message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') + "\\n\\n" }}
{%- endif %}
"""
CHATML = """{% for message in messages %}
    {% if message.role == 'assistant' %}
{{'<|im_start|>' + message['role'] + '\\n'}}{% generation %}{{ message['content'] }}{% endgeneration %}{{'<|im_end|>' + '\\n'}}
        {% continue %}
    {% endif %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""
MARKS = [
    "<|endoftext|>",
    "<|begin|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
]
TEMPLATES = {
    "headers": HEADERS,
    "chatml": CHATML,
    **{name: template.text for name, template in chat.NAMED.items()},
}


def said(*contents, system=None):
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


CONVERSATIONS = [
    said("How many <b>\"apples\"</b> & 'pears'? "),
    said("Hello", "Hi 😀\n", "é\u2028 again\n\n"),
    said(" one ", "two", "three", "four", "five", system="  Be brief.\n"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level tokenizer with special tokens, as a model's folder holds it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = {
        letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(MARKS)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write(folder, template, **tokens):
    tokens = {
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|endoftext|>", "lstrip": False},
        **tokens,
    }
    config = {
        "add_bos_token": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": template,
        **tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation", [True, False])
def test_text_and_tokens_are_those_of_transformers(folder, name, generation):
    transformers = pytest.importorskip("transformers")
    write(folder, TEMPLATES[name])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<|begin|>",
        eos_token="<|endoftext|>",
        chat_template=TEMPLATES[name],
    )
    ours = tokenizers.hugging_face(str(folder))
    for messages in CONVERSATIONS:
        asked = {"add_generation_prompt": generation}
        text = chat.render(chat.find(str(folder)), messages, **asked)
        assert text == theirs.apply_chat_template(messages, tokenize=False, **asked)
        assert ours.encode(text) == theirs.apply_chat_template(messages, return_dict=False, **asked)
        assert text.count("<|begin|>") == (name == "headers")


def test_named_templates_by_hand():
    messages = said("a", "b", "c", system="s")
    told = chat.render(chat.find("tulu"), messages, add_generation_prompt=True, eos_token="</s>")
    assert told == "<|system|>\ns\n<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\nc\n<|assistant|>\n"
    told = chat.render(
        chat.find("tulu"), messages[:3], add_generation_prompt=False, eos_token="</s>"
    )
    assert told == "<|system|>\ns\n<|user|>\na\n<|assistant|>\nb</s>"
    told = chat.render(chat.find("pythia"), messages[1:], add_generation_prompt=True)
    assert (
        told
        == "<|user|>a<|endoftext|><|assistant|>b<|endoftext|><|user|>c<|endoftext|><|assistant|>"
    )


def test_a_template_is_found_where_models_keep_it(tmp_path):
    write(tmp_path, "config {{ eos_token }}")
    (tmp_path / "other.jinja").write_text("jinja {{ eos_token }}")
    found = {
        path: chat.find(str(path))
        for path in (tmp_path, tmp_path / "tokenizer_config.json", tmp_path / "other.jinja")
    }
    texts = [chat.render(template, [], add_generation_prompt=False) for template in found.values()]
    assert texts == ["config <|endoftext|>", "config <|endoftext|>", "jinja <|endoftext|>"]
    (tmp_path / "chat_template.jinja").write_text("newer {{ bos_token }}")
    assert (
        chat.render(chat.find(str(tmp_path)), [], add_generation_prompt=False) == "newer <|begin|>"
    )
    assert (
        chat.render(chat.find(str(tmp_path)), [], add_generation_prompt=False, bos_token="<s>")
        == "newer <s>"
    )
    (tmp_path / "tokenizer_config.json").unlink()
    assert chat.find(str(tmp_path)).tokens == {}


def test_of_several_templates_the_default_is_taken(tmp_path):
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    for template in (several, several[::-1], several[1:], [{"name": "chat", "template": "plain"}]):
        assert chat.find(str(write(tmp_path, template))).text == "plain"
    with pytest.raises(
        ValueError, match=r"has the chat templates tool_use, rag, none called default"
    ):
        chat.find(str(write(tmp_path, [several[0], {"name": "rag", "template": "r"}])))


def test_a_template_that_is_not_there_is_named(tmp_path):
    for path in ("", "chatml", str(tmp_path), str(tmp_path / "x.jinja")):
        with pytest.raises(
            ValueError,
            match=r"no chat template '.*'; accepted: pythia, tulu, a \.jinja file, a tokenizer_c",
        ):
            chat.find(path)
    for content, message in [
        (b'{"eos_token": "x"}', " has no chat_template; give"),
        (b"[1]", r": found \[1\]; accepted: a JSON object"),
        (b"{", ": .* is not JSON"),
        (b"\xff", ":1: found a byte 0xff that is not UTF-8"),
    ]:
        (tmp_path / "tokenizer_config.json").write_bytes(content)
        with pytest.raises(ValueError, match=rf"tokenizer_config\.json{message}") as error:
            chat.find(str(tmp_path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for message in messages %}", r"Unexpected end of template\."),
        ("{{ raise_exception('only\nusers') }}", "only users$"),
        (
            "{{ 'a' + eos_token }}",
            r"'eos_token' is undefined; given: messages, add_generation_prompt$",
        ),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{{ 'a' + 7 }}", "can only concatenate str"),
        ("{{ 7 // 0 }}", "division or modulo by zero"),
        ("{{ ['a', 'b'] | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'.* is unsafe"),
        ("{{ messages.append(7) }}", "access to attribute 'append'.* is unsafe"),
        ("{{ messages[0].update(role='x') }}", "access to attribute 'update'.* is unsafe"),
        ("{% include 'tulu' %}", "no loader for this environment"),
    ],
)
def test_a_wrong_template_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "wrong.jinja").write_text(text)
    with pytest.raises(ValueError, match=rf"^chat template .*wrong\.jinja: .*{message}") as error:
        chat.render(
            chat.find(str(tmp_path / "wrong.jinja")), said("a"), add_generation_prompt=False
        )
    assert "\n" not in str(error.value)


def test_tulu_needs_an_eos_where_a_reply_was_given_and_knows_three_roles():
    assert (
        chat.render(chat.find("tulu"), said("a"), add_generation_prompt=True)
        == "<|user|>\na\n<|assistant|>\n"
    )
    with pytest.raises(ValueError, match="chat template tulu: 'eos_token' is undefined"):
        chat.render(chat.find("tulu"), said("a", "b", "c"), add_generation_prompt=True)
    with pytest.raises(ValueError, match="chat template tulu: no role tool in tulu"):
        chat.render(
            chat.find("tulu"), [{"role": "tool", "content": "a"}], add_generation_prompt=True
        )


def test_json_in_a_template_is_not_escaped():
    template = chat.Template(
        "{{ messages[0].content | tojson }} {{ {'b': 1, 'a': [2]} | tojson(indent=1, "
        "sort_keys=true) }}"
    )
    told = chat.render(template, said("<é & 'x'>"), add_generation_prompt=False)
    assert told == '"<é & \'x\'>" {\n "a": [\n  2\n ],\n "b": 1\n}'


def test_messages_are_left_as_they_were():
    messages = said("a", system="s")
    template = chat.Template("{% set messages = messages[1:] %}{{ messages | length }}")
    assert chat.render(template, messages, add_generation_prompt=False) == "1"
    assert messages == said("a", system="s")


DATED = "{% if date is not defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}{{ date }}: {{ messages[0].content }}"
CAREFUL = (
    "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% else %}26 Jul 2024{% endif %}"
)


def test_a_template_that_asks_for_the_date_is_told_one_or_refused():
    messages = said("a")
    with pytest.raises(
        ValueError,
        match=r"chat template t asks for today's date .* set task\.date to a day, as 2025-01-31",
    ):
        chat.render(chat.Template(DATED, "t"), messages, add_generation_prompt=True)
    dated = chat.Template(DATED, "t", date="2025-01-31")
    assert chat.render(dated, messages, add_generation_prompt=True) == "31 Jan 2025: a"
    assert chat.render(dated, messages, add_generation_prompt=True, date="today") == "today: a"
    for date, expected in (("", "26 Jul 2024"), ("2024-02-29", "2024-02-29")):
        assert (
            chat.render(chat.Template(CAREFUL, date=date), messages, add_generation_prompt=True)
            == expected
        )
    for date in ("31 January", "2025-13-01", "tomorrow"):
        with pytest.raises(
            ValueError, match=rf"task\.date is '{date}'; accepted: a day, as 2025-01-31, or nothing"
        ):
            chat.render(chat.Template(CAREFUL, date=date), messages, add_generation_prompt=True)


def test_what_a_template_says_itself_is_told_from_what_is_wrong_with_it():
    for text, kind in (
        ("{{ raise_exception('no system') }}", chat.Refused),
        ("{{ nothing + 1 }}", ValueError),
    ):
        with pytest.raises(ValueError, match="chat template") as error:
            chat.render(chat.Template(text), said("a"), add_generation_prompt=True)
        assert isinstance(error.value, chat.Refused) == (kind is chat.Refused)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_rendered_prompt_has_the_bos_of_its_template_alone(tmp_path, name):
    """Its tokens are those of apply_chat_template, whatever the tokenizer puts before other texts."""
    transformers = pytest.importorskip("transformers")
    folder = made.byte_level(tmp_path, tuple(MARKS), bos="<|begin|>")
    write(folder, TEMPLATES[name], eos_token="<|endoftext|>")
    theirs, ours = (
        transformers.AutoTokenizer.from_pretrained(folder),
        tokenizers.hugging_face(str(folder)),
    )
    for messages in CONVERSATIONS:
        text = chat.render(chat.find(str(folder)), messages, add_generation_prompt=True)
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert encoding.prompt_ids(text, ours) == expected
        assert encoding.count_tokens(ours, [text, "a", str(text)]) == [
            len(expected),
            2,
            len(expected) + (name != "headers"),
        ]
        assert expected.count(ours.prefix_ids[0]) == (name == "headers")
        assert list(text.messages) == messages
