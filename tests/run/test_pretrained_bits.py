"""Before training, a start costs as many bits per byte of held-out texts as in `transformers`.

A text begins with two marks here and with one token there. Both marks are copies of that token, or
of the end of a text where there is none for its beginning.
"""

import math
import random

import pytest
import torch

from mmtok.core.segment import Document
from mmtok.run.build import fit
from mmtok.run.pretrained import load_start
from mmtok.run.recipe import load_recipe

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

STEPS = 100
WORDS = {
    "a": ["small", "large", "thin", "broad", "charged", "heavy"],
    "n": ["jet", "muon", "cat", "letter", "wave", "garden", "sentence"],
    "v": ["finds", "writes", "follows", "moves", "hears"],
}


def texts(n, seed):
    """Sentences of which every one opens with the same words: the first token matters."""
    dice = random.Random(seed)

    def sentence():
        w = {kind: dice.choice(words) for kind, words in WORDS.items()}
        return f"The {w['a']} {w['n']} {w['v']} a {dice.choice(WORDS['n'])}."

    return [" ".join(sentence() for _ in range(dice.randint(1, 3))) for _ in range(n)]


def save_tokenizer(folder, has_begin):
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel
    tok.pre_tokenizer = level(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=level.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(texts(200, 1), trainer)
    begin = "<s>" if has_begin else None
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=begin, eos_token="</s>"
    )
    fast.save_pretrained(folder)
    return tok


def taught(kind, tok, begin):
    """A tiny model, taught by its own loss on rows of texts behind each other."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        bos_token_id=0 if begin == 0 else None,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    end = [1] * (begin != 1)  # else it is what the next text begins with
    ids = [[begin, *tok.encode(text).ids, *end] for text in texts(1400, 2)]
    stream = torch.tensor(sum(ids, []))
    for step in range(STEPS):
        rows = stream[step * 240 :][:240].view(4, 60)
        logits = model(rows[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def nats_of(model, tok, begin, heldout):
    """-log p of texts and their ends, after the model's own first token."""
    total = 0.0
    for text in heldout:
        ids = torch.tensor([[begin, *tok.encode(text).ids, 1]])
        log_p = model(ids).logits.double().log_softmax(-1)
        total -= float(log_p[0, :-1].gather(1, ids[0, 1:, None]).sum())
    return total


@pytest.mark.parametrize("kind, begin", [("llama", 0), ("gemma", 0), ("qwen2", 1)])
def test_bits_per_byte_equal_those_of_transformers(kind, begin, tmp_path):
    folder = tmp_path / "start"
    tok = save_tokenizer(folder, begin == 0)
    model = taught(kind, tok, begin)
    model.save_pretrained(folder)
    (tmp_path / "some.txt").write_text("\n".join(texts(20, 3)))
    overrides = ["--path", str(tmp_path / "some.txt"), "--start", str(folder)]
    run = fit(load_recipe("recipes/text.py", overrides), tmp_path / "run")
    lm = run.untrained()
    load_start(lm, run.recipe)
    heldout = texts(40, 4)
    documents = [Document((run.tokenizers["text"].encode(x),), (True,)) for x in heldout]
    n_bits = sum(len(x.encode()) for x in heldout) * math.log(2)

    def bits_per_byte():
        return sum(x.total for x in run.score_documents(documents, lm)) / n_bits

    theirs = nats_of(model, tok, begin, heldout) / n_bits
    assert theirs < 1.5  # it has learned something
    assert bits_per_byte() == pytest.approx(theirs, rel=0.005)
    table = lm.model.embed_tokens.weight.data
    for mark in (run.vocabulary.document_mark, run.vocabulary.begin("text")):
        table[mark] = table[tok.token_to_id("a")]
    assert bits_per_byte() != pytest.approx(theirs, rel=0.005)  # any other mark costs more
