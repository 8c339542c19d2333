"""Conversations: a checkpoint's template lays them out, and p is asked of the assistant's words."""

import json
import pickle
import re

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.io.conversations import Conversation, conversation_of
from mmtok.tokenizers import load
from mmtok.tokenizers.pretrained import PretrainedText, PretrainedTextConfig
from mmtok.tokenizers.text import BytesConfig

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

MARKS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
# as Llama 3's, with its date, its tools and its trimming
LLAMA = """{{- bos_token }}
{%- set date = strftime_now("%d %b %Y") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson }}{{- "\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- message.tool_calls[0].function | tojson }}{{- "<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | trim + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'
 + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TAGGED = (
    "{% for message in messages %}{% if message.role == 'assistant' %}[a]{% generation %}"
    "{{ message.content }}{% endgeneration %}<|eot_id|>{% else %}[u]{{ message.content }}"
    "<|eot_id|>{% endif %}{% endfor %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"days": 3}}}
LONG = [
    {"role": "system", "content": " Be short. "},
    {"role": "user", "content": "What is it like in Gen\u00e8ve? \U0001f469"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {}}}],
    },
    {"role": "tool", "content": "cold, 3 degrees"},
    {"role": "assistant", "content": "Cold, \u00e9t\u00e9 is over \U0001f600.\n\n"},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "Welcome"},
]


def checkpoint(folder, template=LLAMA, marks=MARKS, bos="<|begin_of_text|>"):
    """A folder with a tiny byte-level tokenizer and a chat template."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    tok.train_from_iterator(
        ["user assistant system Today Date: Cold Welcome\n\n"] * 3,
        tokenizers.trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=marks,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=bos)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


def opened(folder):
    return PretrainedTextConfig(str(folder), chat=True).build()


def asked_text(tokenizer, segment):
    """The runs of positions that carry loss, as texts."""
    edges = np.flatnonzero(np.diff(segment.predict.astype(int), prepend=0, append=0))
    return [
        tokenizer._tok.decode(segment.codes[a:b, 0].tolist(), skip_special_tokens=False)
        for a, b in edges.reshape(-1, 2)
    ]


def test_loss_is_on_the_assistants_words_and_end_marks_alone(tmp_path):
    fast = checkpoint(tmp_path)
    tokenizer = opened(tmp_path)
    segment = tokenizer.encode(conversation_of(LONG, [WEATHER]))
    assert asked_text(tokenizer, segment) == [
        '{"name": "weather", "arguments": {}}<|eot_id|>',
        "Cold, \u00e9t\u00e9 is over \U0001f600.<|eot_id|>",
        "Welcome<|eot_id|>",
    ]
    text = tokenizer.decode(segment)
    assert "Today Date: 26 Jul 2024\n\n" in text and '"days": 3' in text
    assert "<|start_header_id|>ipython<|end_header_id|>\n\ncold, 3 degrees<|eot_id|>" in text
    theirs = fast.apply_chat_template(LONG, tools=[WEATHER], tokenize=False)
    undated = re.sub(r"Today Date: .*\n", "", theirs)
    assert re.sub(r"Today Date: .*\n", "", text) == undated
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert segment.codes[:, 0].tolist() == ids
    assert set(tokenizer.signature.banned) == {fast.convert_tokens_to_ids("<|pad|>")}


def test_the_line_break_behind_an_end_mark_carries_no_loss(tmp_path):
    fast = checkpoint(tmp_path, CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_start|>")
    tokenizer = opened(tmp_path)
    messages = [
        {"from": "human", "value": "one"},
        {"from": "gpt", "value": "two\nlines"},
        {"from": "human", "value": "three"},
        {"from": "gpt", "value": "four"},
    ]
    segment = tokenizer.encode(conversation_of(messages))
    assert asked_text(tokenizer, segment) == ["two\nlines<|im_end|>", "four<|im_end|>"]
    roles = ("user", "assistant") * 2
    renamed = [{"role": r, "content": m["value"]} for r, m in zip(roles, messages, strict=True)]
    theirs = fast.apply_chat_template(renamed, return_dict=False)
    assert segment.codes[:, 0].tolist() == theirs


def test_generation_tags_of_a_template_are_followed(tmp_path):
    checkpoint(tmp_path, TAGGED)
    tokenizer = opened(tmp_path)
    segment = tokenizer.encode(conversation_of(LONG[3:]))
    assert asked_text(tokenizer, segment) == [
        "Cold, \u00e9t\u00e9 is over \U0001f600.\n\n<|eot_id|>",
        "Welcome<|eot_id|>",
    ]


def test_marks_that_people_spell_are_letters(tmp_path):
    checkpoint(tmp_path)
    tokenizer = opened(tmp_path)
    messages = [
        {"role": "user", "content": "say <|eot_id|> twice \U000f0000"},
        {"role": "assistant", "content": "<|eot_id|> and <|pad|>"},
    ]
    segment = tokenizer.encode(conversation_of(messages))
    eot = tokenizer._tok.token_to_id("<|eot_id|>")
    assert int((segment.codes == eot).sum()) == 3  # of the system, the user, the assistant
    assert asked_text(tokenizer, segment) == ["<|eot_id|> and <|pad|><|eot_id|>"]
    assert "say <|eot_id|> twice \U000f0000<|eot_id|>" in tokenizer.decode(segment)
    assert tokenizer.fidelity([conversation_of(messages)])["exact_share"] == 1.0
    text = tokenizer.encode("a text with <|eot_id|>")  # a text is what it was
    assert text.predict is None and eot not in text.codes


def test_a_piece_that_begins_before_the_answer_counts(tmp_path):
    """As " Cold" does, where the template ends the assistant's header with a space."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    checkpoint(tmp_path, template)
    tokenizer = opened(tmp_path)
    chat = conversation_of([{"role": "assistant", "content": "Cold"}])
    assert asked_text(tokenizer, tokenizer.encode(chat)) == [" Cold<|eot_id|>"]


def test_units_are_bytes_of_what_is_asked(tmp_path):
    checkpoint(tmp_path)
    tokenizer = opened(tmp_path)
    segment = tokenizer.encode(conversation_of(LONG[5:]))
    assert tokenizer.n_units(segment) == len("Welcome<|eot_id|>")


def test_what_is_saved_is_opened(tmp_path):
    checkpoint(tmp_path / "start")
    tokenizer = opened(tmp_path / "start")
    tokenizer.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert isinstance(again, PretrainedText) and again.signature == tokenizer.signature
    chat = conversation_of(LONG)
    first = tokenizer.encode(chat)
    second = again.encode(chat)
    assert (first.codes == second.codes).all() and (first.predict == second.predict).all()
    plain = PretrainedTextConfig(str(tmp_path / "start")).build()
    assert plain.signature.fingerprint != tokenizer.signature.fingerprint
    assert len(plain.signature.banned) == len(MARKS)


def test_another_process_encodes_alike(tmp_path):
    checkpoint(tmp_path)
    tokenizer = opened(tmp_path)
    again = pickle.loads(pickle.dumps(tokenizer))
    for signal in ("seven <|eot_id|><|pad|> letters", conversation_of(LONG, [WEATHER])):
        mine = tokenizer.encode(signal)
        theirs = again.encode(signal)
        assert (mine.codes == theirs.codes).all() and (mine.asked == theirs.asked).all()
    assert again._tok.encode_special_tokens and not again.chat._tok.encode_special_tokens


def test_a_missing_template_is_refused_in_one_line(tmp_path):
    checkpoint(tmp_path, None)
    with pytest.raises(UserError, match="has no chat template") as error:
        opened(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": TAGGED}, {"name": "tool_use", "template": LLAMA}]
    config["chat_template"] = named
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert opened(tmp_path).chat.template.template == TAGGED


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must"),
        ("{% if %}", "refuses the conversation"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "message 1"),
    ],
)
def test_templates_that_fail_or_do_not_tell_turns_are_refused(tmp_path, template, says):
    checkpoint(tmp_path, template)
    with pytest.raises(UserError, match=says) as error:
        opened(tmp_path).encode(conversation_of(LONG[5:]))
    assert "\n" not in str(error.value)


def test_other_tokenizers_say_what_a_conversation_needs(tmp_path):
    chat = conversation_of(LONG)
    with pytest.raises(UserError, match="--start"):
        BytesConfig().build().encode(chat)
    checkpoint(tmp_path)
    with pytest.raises(UserError, match='"chat": true'):
        PretrainedTextConfig(str(tmp_path)).build().encode(chat)
    with pytest.raises(UserError, match="no checkpoint given"):
        PretrainedTextConfig(chat=True).build()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("words", "a conversation as JSON"),
        ({"role": "user"}, "holds dict"),
        (["words"], "message 0 is 'words'"),
        ([{"content": "words"}], "message 0 has no role; its keys are content"),
        ([{"role": "user", "content": 3}], "message 0 has int as its content"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, says):
    with pytest.raises(UserError, match=says):
        conversation_of(messages)


def test_conversations_are_read_from_lists_and_json():
    parts = [{"type": "text", "text": "abc"}, {"type": "image"}]
    chat = conversation_of([{"role": "user", "content": parts, "name": None}])
    assert isinstance(chat, Conversation) and chat.n_chars == 3 and not chat.has_answer
    assert "name" not in chat.messages[0]
    same = conversation_of(json.dumps([{"role": "model", "content": "abc"}]), "[]")
    assert same.has_answer and same.tools == ()
