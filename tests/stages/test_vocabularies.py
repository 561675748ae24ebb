"""Published folders whose tokens are not the run's: refused by content, or judged in their own
tokens and template.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import quickstart
from rlhf_jax import build
from rlhf_jax.models import llama
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.pretrained import export
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages import comparisons, rlhf, sft
from rlhf_jax.stages.checks import vocabularies
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.tasks import jsonl, no_robots
from rlhf_jax.text import chat, encoding, tokenizers
from tests.models.families import random_params
from tests.pretrained import made
from tests.tasks import published

SIZE = 300
LLAMA = llama.Config(SIZE, 24, 1, 2, 1, 40)
MARKS = ("<|end|>", "<|head|>", "<|turn|>")
HEADS = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}\n{{ m.content }}<|turn|>{% endfor "
    "%}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)
OWN = {"eos_token": "<|turn|>", "bos_token": "<|end|>"}
SAID = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Writes a published sequence classifier without a tokenizer, and gives its folder."""
    place, model = tmp_path_factory.mktemp("classifiers"), llama.make(LLAMA)

    def write(name, vocab_size=SIZE):
        sized = (
            llama.make(dataclasses.replace(LLAMA, vocab_size=vocab_size))
            if vocab_size != SIZE
            else model
        )
        params = ValueModel(sized).init_from(random_params(sized, 0), jax.random.key(0))
        export.save(place / name, sized, params, token_ids={"pad_token_id": 0})
        return place / name

    return write


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = made.byte_level(
        tmp_path_factory.mktemp("policy"), tokenizer_config={"eos_token": "<|im_end|>"}
    )
    return tokenizers.hugging_face(str(folder))


@pytest.fixture(scope="module")
def foreign(classifier):
    """A gold model with marks, a BOS and a chat template of its own."""
    return made.byte_level(
        classifier("foreign"), MARKS, "<|end|>", tokenizer_config=OWN | {"chat_template": HEADS}
    )


def judge(policy, folder, date="", **options):
    from rlhf_jax.devices import mesh

    return pretrained_models.Judge(
        pretrained_models.Config(gold=str(folder), **options),
        policy,
        mesh.make_mesh(mesh.Config()),
        date,
    )


def task_of(folder, template, **options):
    folder.mkdir(exist_ok=True)
    path = folder / "own.jinja"
    path.write_text(template)
    return no_robots.make(
        no_robots.Config(str(published.write_no_robots(folder)), chat_template=str(path), **options)
    )


@pytest.mark.parametrize(
    ("special", "files", "accepted"),
    [
        (made.CHATML, {}, True),
        ((*made.CHATML, "[PAD]"), {}, True),  # one more, as TRL adds it
        (made.CHATML, {"added_tokens": {"[PAD]": 259}}, True),
        (MARKS, {}, False),  # as many
        (made.CHATML[::-1], {}, False),
        (made.CHATML[:2], {}, False),  # the model knows the id, its tokenizer does not
    ],
)
def test_a_reward_model_is_of_the_policy_s_tokens(
    classifier, policy, tmp_path, special, files, accepted
):
    folder = made.byte_level(classifier(tmp_path.name), special, **files)
    pretrained = pretrained_models.Config(reward_model=str(folder))
    if accepted:
        pretrained_models.check(pretrained, policy)
        return
    with pytest.raises(
        Refusal,
        match=r"has another vocabulary \(tokenizer\.json\): token 25\d is .* here and .* there; it "
        r"sc",
    ):
        pretrained_models.check(pretrained, policy)


def test_a_reward_model_with_a_model_of_pieces(classifier, tmp_path):
    """It is compared by its pieces; without any tokenizer nothing but the size can be."""
    file = made.pieces(tmp_path / "one")
    mine = tokenizers.sentencepiece(str(file))
    folder = classifier(tmp_path.name)
    pretrained = pretrained_models.Config(reward_model=str(folder))
    pretrained_models.check(pretrained, mine)
    (folder / "tokenizer.model").write_bytes(file.read_bytes())
    pretrained_models.check(pretrained, mine)
    (folder / "tokenizer.model").write_bytes(
        made.pieces(tmp_path / "two", vocab_size=60).read_bytes()
    )
    with pytest.raises(
        Refusal,
        match=r"has another vocabulary \(tokenizer\.model\): token \d+ is '.*' here and '.*' there",
    ):
        pretrained_models.check(pretrained, mine)
    with pytest.raises(
        Refusal,
        match=r"has another vocabulary \(tokenizer\.model\): token 2 is '<0x00>' here and '</s>' "
        r"there",
    ):
        pretrained_models.check(pretrained, tokenizers.ByteTokenizer())


def test_the_policy_s_folder_is_of_the_run_s_tokens(tmp_path, policy):
    """New tokens, and special ones with another name, are learned; ordinary ones that differ are
    not.
    """
    for special in (made.CHATML, made.CHATML[:2], ("<|reserved|>", *made.CHATML[1:])):
        folder = made.byte_level(tmp_path / special[0].strip("<|>"), special)
        vocabularies.check_policy(folder, policy)
    for folder in (
        made.pieces(tmp_path / "pieces").parent,
        made.metaspace(tmp_path / "meta", "plain"),
    ):
        with pytest.raises(
            Refusal,
            match=r"the policy's folder .* has another vocabulary .*--config\.tokenizer\.kind=hf "
            r"takes",
        ):
            vocabularies.check_policy(folder, policy)
    with pytest.raises(Refusal, match=r"token 2 is '<0x00>' here and '#' there"):
        vocabularies.check_policy(made.byte_level(tmp_path / "bytes"), tokenizers.ByteTokenizer())


def test_a_folder_in_another_role_is_refused_before_anything_is_compiled(
    tmp_path, classifier, policy
):
    decoder = tmp_path / "decoder"
    model = llama.make(LLAMA)
    export.save(decoder, model, random_params(model, 0), token_ids={})
    for role in ("base", "sft"):
        with pytest.raises(Refusal, match=r"is a reward model .* and no policy"):
            pretrained_models.check(
                pretrained_models.Config(**{role: str(classifier(tmp_path.name + role))}), policy
            )
    for role in ("reward_model", "gold"):
        with pytest.raises(Refusal, match=r"has no tensor .score\.weight.: it is no reward model"):
            pretrained_models.check(pretrained_models.Config(**{role: str(decoder)}), policy)


def test_a_conversation_is_rendered_again_for_gold(foreign, policy):
    """As apply_chat_template gives it, reply and its end included; a reply that has not ended stays
    open.
    """
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(foreign)
    prompt = chat.render(
        chat.Template("<|im_start|>{{ messages[0].content }}<|im_end|>"),
        SAID,
        add_generation_prompt=True,
    )
    ours = judge(policy, foreign)
    whole = [*SAID, {"role": "assistant", "content": " Hello"}]
    assert ours.ids(prompt, " Hello", True) == theirs.apply_chat_template(whole, return_dict=False)
    opened = theirs.apply_chat_template(SAID, add_generation_prompt=True, return_dict=False)
    assert ours.ids(prompt, " Hello", False) == [
        *opened,
        *theirs(" Hello", add_special_tokens=False)["input_ids"],
    ]


def test_gold_of_the_policy_s_tokens_gets_the_policy_s_text(classifier, policy):
    folder = made.byte_level(
        classifier("same"), tokenizer_config={"eos_token": "<|im_end|>", "chat_template": "{{ 1 }}"}
    )
    prompt = chat.Rendered("<|im_start|>Hi<|im_end|>", SAID)
    own = [*policy.encode(prompt), *policy.encode("a"), policy.eos_id]
    assert judge(policy, folder).ids(prompt, "a", True) == own
    # Unless another template is asked for: that of the folder gives a 1.
    assert judge(policy, folder, gold_chat_template=str(folder)).ids(
        prompt, "a", True
    ) == policy.encode("1")
    assert judge(policy, folder, gold_chat_template="pythia").ids(
        prompt, "a", False
    ) == policy.encode("<|user|>Hi<|endoftext|><|assistant|>a")


def test_marks_that_gold_does_not_know_are_refused(foreign, classifier, policy, tmp_path):
    pretrained = pretrained_models.Config(gold=str(foreign))
    chatml = "<|im_start|>{{ messages[-1].content }}"
    path = tmp_path / "prompts.jsonl"

    def own(*prompts):
        published.write_jsonl(path, [{"prompt": prompt, "references": ["r"]} for prompt in prompts])
        return jsonl.make(jsonl.Config(str(path), heldout_percent=0))

    message = r"pretrained\.gold .*foreign has a tokenizer of its own, in which '<\|im_start\|>' of the policy's is no token"
    for task in (None, own("plain", "<|im_start|>user")):
        with pytest.raises(
            Refusal, match=message.replace("im_start", "endoftext") if task is None else message
        ):
            pretrained_models.check(pretrained, policy, task)
    pretrained_models.check(
        pretrained, policy, own("plain", "another <|im_end|>")
    )  # an EOS is said otherwise there
    pretrained_models.check(
        pretrained, policy, task_of(tmp_path / "robots", chatml)
    )  # which is rendered again
    without = made.byte_level(classifier("without"), MARKS, tokenizer_config=OWN)
    with pytest.raises(Refusal, match=message.replace("foreign", "without")):
        pretrained_models.check(
            pretrained_models.Config(gold=str(without)),
            policy,
            task_of(tmp_path / "robots", chatml),
        )
    with pytest.raises(
        Refusal, match=r"pretrained\.gold .* does not know the special token '<\|im_start\|>'"
    ):
        judge(policy, foreign).ids("<|im_start|>Hi", "a", True)
    assert judge(policy, foreign).ids("Hi", "a", True)[-1] == made.BYTES + 2


def test_added_tokens_that_are_text_are_no_marks(foreign, tmp_path):
    """Gemma has tokens for HTML, Qwen some for tools: gold of another tokenizer reads them as text."""
    tokens = {
        "259": {"content": "<b>", "special": False},
        "260": {"content": "<mark>", "special": True},
    }
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": tokens}
    mine = tokenizers.hugging_face(str(made.byte_level(tmp_path, tokenizer_config=config)))
    gold = judge(mine, foreign)
    assert gold.ids("<b>Hi", "a", False) == [made.BYTES, *gold.tokenizer.encode("<b>Hia")]
    with pytest.raises(Refusal, match="does not know the special token '<mark>'"):
        gold.ids("<mark>Hi", "a", False)


def test_a_gold_model_is_read_with_the_tokenizer_of_its_folder(classifier, policy, tmp_path):
    folder = classifier(tmp_path.name)
    assert judge(policy, folder).tokenizer is policy
    file = made.pieces(tmp_path / "pieces")
    (folder / "spiece.model").write_bytes(file.read_bytes())
    assert judge(policy, folder).ids("hi it", " is", False) == tokenizers.sentencepiece(
        str(file)
    ).encode("hi it is")
    small = classifier("small", 100)
    with pytest.raises(
        Refusal,
        match=r"small knows 100 tokens, but the policy's tokenizer, as the folder holds none, has "
        r"259",
    ):
        pretrained_models.check(pretrained_models.Config(gold=str(small)), policy)
    made.byte_level(small, MARKS, tokenizer_config=OWN)
    with pytest.raises(
        Refusal,
        match=r"pretrained\.gold .*small: model\.vocab_size is 100, but the tokenizer has 259 "
        r"tokens",
    ):
        pretrained_models.check(pretrained_models.Config(gold=str(small)), policy)


def test_what_a_gold_model_s_template_lacks_is_told_at_the_start(classifier, policy, tmp_path):
    dated = "{{ strftime_now('%Y') }}" + HEADS
    folder = made.byte_level(
        classifier("dated"), MARKS, tokenizer_config=OWN | {"chat_template": dated}
    )
    pretrained = pretrained_models.Config(gold=str(folder))
    with pytest.raises(Refusal, match=r"pretrained\.gold: chat template .* set task\.date"):
        pretrained_models.check(pretrained, policy, task_of(tmp_path, HEADS, bos_token="<|end|>"))
    pretrained_models.check(
        pretrained, policy, task_of(tmp_path, HEADS, bos_token="<|end|>", date="2025-01-31")
    )
    prompt = chat.Rendered("x", SAID)
    ids = judge(policy, folder, "2025-01-31").ids(prompt, "a", True)
    assert ids[:4] == policy.encode("2025")
    with pytest.raises(Refusal, match="no chat template 'nowhere'"):
        pretrained_models.check(
            dataclasses.replace(pretrained, gold_chat_template="nowhere"), policy
        )


def tiny_config(directory, data, tokenizer, **task):
    """The quickstart's sizes for conversations and a tokenizer of a file."""
    config = quickstart.get_config()
    config.directory, config.task = str(directory), build.component("tasks", "no_robots")
    config.task.update({"data_dir": str(data), **task})
    config.tokenizer.update({"kind": "hf", "path": str(tokenizer)})
    config.model.update({"width": 16, "num_layers": 1, "num_heads": 2, "ffn_width": 32})
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 160, 8
    config.evaluate.references_per_prompt = 1
    config.job, config.sft.min_whole_references = "sft", 0.0
    return config


def test_a_run_of_conversations_from_its_tokenizer_to_its_comparisons(tmp_path, capsys):
    """A BOS is the template's to write, every end ends a row, and what is left out of the data is
    told.
    """
    config = {"eos_token": "<|end|>", "bos_token": "<|head|>"}
    folder = made.byte_level(
        tmp_path / "tokenizer",
        MARKS,
        "<|head|>",
        tokenizer_config=config,
        generation_config={"eos_token_id": [256, 258]},
    )
    data = published.write_no_robots(tmp_path / "data")
    prepared = build.prepare(
        tiny_config(tmp_path / "run", data, folder, eos_token="<|end|>"), print
    )
    assert (
        "no_robots, prompts: train: 13 of 13 rows (9500 are published)" in capsys.readouterr().out
    )
    workspace, stages, algorithm = prepared
    stream = workspace.stream("train", "sft")
    prompts = stream.prompts(0, 4)
    first = [row[mask][0] for row, mask in zip(prompts.tokens_PQ, prompts.mask_PQ, strict=True)]
    assert set(first) == set(workspace.tokenizer.encode("<"))
    assert 257 not in np.asarray(prompts.tokens_PQ)[prompts.mask_PQ]
    batch = sft.rows(workspace, stream, dataclasses.replace(stages.sft, rows_per_update=8), 0)
    short = np.asarray(batch.mask_RC).sum(-1) < 8
    ends = np.asarray(batch.tokens_RC)[np.arange(8), np.asarray(batch.mask_RC).sum(-1) - 1]
    assert set(ends[short].tolist()) <= {256}
    spec = rlhf.make_spec(workspace, stages.rlhf, algorithm, rlhf.Reward(), None)
    assert spec.eos_id == (256, 258)

    prompt = workspace.task.prompt("train", 0)
    comparisons.write(
        comparisons.path(workspace, "train"),
        comparisons.own_pairs(workspace, [(prompt, "a", "b"), ("plain", "a", "b")]),
    )
    again = comparisons.read(workspace, "train")
    assert [isinstance(line["prompt"], chat.Rendered) for line in again] == [True, False]
    assert [line["prompt"] for line in again] == [prompt, "plain"]
    assert encoding.prompt_ids(again[0]["prompt"], workspace.tokenizer)[0] != 257
    assert again[0]["chosen_tokens"] == [*workspace.tokenizer.encode("a"), 256]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eos_token": "</s>"},
            r"chat template tulu: its eos_token is '</s>', which the run's tokenizer spells out in "
            r"4 tokens",
        ),
        (
            {"eos_token": "<|end|>", "chat_template": "own"},
            r"its bos_token is '<s>', .* set task\.bos_token to a special",
        ),
    ],
)
def test_a_template_s_marks_are_tokens_of_the_run(tmp_path, changes, message):
    folder = made.byte_level(
        tmp_path / "tokenizer", MARKS, tokenizer_config={"eos_token": "<|end|>"}
    )
    data = published.write_no_robots(tmp_path / "data")
    if "chat_template" in changes:
        (tmp_path / "own.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
        changes |= {"chat_template": str(tmp_path / "own.jinja"), "bos_token": "<s>"}
    with pytest.raises(Refusal, match=message):
        build.prepare(tiny_config(tmp_path / "run", data, folder, **changes))
    assert not (tmp_path / "run").exists()


def test_the_policy_s_folder_says_what_ends_its_texts(tmp_path):
    """A folder with more tokens than its model has rows, two ends, and a tokenizer that a run takes
    from it.
    """
    place = tmp_path / "policy"
    model = llama.make(dataclasses.replace(LLAMA, vocab_size=259))
    export.save(place, model, random_params(model, 0), token_ids={"eos_token_id": [258, 256]})
    config = {"eos_token": "<|turn|>", "pad_token": "<none>"}
    made.byte_level(
        place, MARKS, tokenizer_config=config, generation_config={"eos_token_id": [258, 256]}
    )
    data = published.write_no_robots(tmp_path / "data")
    settings = tiny_config(tmp_path / "run", data, "", eos_token="<|turn|>")
    settings.pretrained.sft, settings.model.family = str(place), "pretrained"
    workspace = build.prepare(settings)[0]
    assert workspace.tokenizer.eos_ids == (258, 256)
    assert (workspace.tokenizer.vocab_size, workspace.tokenizer.pad_id) == (259, 258)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["tokenizer"]["path"] == str(place)
