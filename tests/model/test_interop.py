"""The trunk is a Llama: logits equal transformers' on shared random weights, saved by either and opened by the other."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok.batch import pack
from mmtok.model.interop import from_llama, to_llama
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.segment import BadInput, Document, Segment, Signature
from mmtok.vocabulary import Vocabulary

transformers = pytest.importorskip("transformers")

ONE_CHANNEL = Vocabulary([Signature("text", (20,)), Signature("image", (8,), frames=4)])
SIZES = [
    TransformerConfig(2, 32, 4, 4, 48),
    TransformerConfig(3, 48, 6, 2, 64, rope_theta=500.0, norm_eps=1e-3),
    TransformerConfig(1, 16, 4, 1, 24),
]


def shake(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
    return model.eval()


@pytest.fixture(params=SIZES, ids=["all_heads", "grouped", "one_kv_head"])
def ours(request):
    return shake(LM(DecoderConfig(request.param), ONE_CHANNEL))


def batch():
    """Two rows, the second padded."""
    codes = lambda k, n: np.random.default_rng(n).integers(0, k, (n, 1))
    long = Document((Segment("text", codes=codes(20, 9)), Segment("image", codes=codes(8, 4))), (True, True))
    short = Document((Segment("text", codes=codes(20, 3)),), (True,))
    return pack(ONE_CHANNEL, [[ONE_CHANNEL.stream(d)] for d in (long, short)])


def assert_same_logits(lm, llama):
    b = batch()
    inside = b.document == 0
    assert (~inside).any() and (b.ids[~inside] == llama.config.pad_token_id).all()
    with torch.no_grad():
        mine, theirs = lm.logits(lm.hidden(b)), llama(b.ids, attention_mask=inside.long()).logits
    assert mine.shape == theirs.shape and theirs[inside].std() > 0.05
    assert torch.allclose(mine[inside], theirs[inside], rtol=0, atol=1e-5)


def test_transformers_opens_what_we_save(ours, tmp_path):
    to_llama(ours, tmp_path)
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(llama).__name__ == "LlamaForCausalLM" and llama.dtype == torch.float32
    assert_same_logits(ours, llama)
    v, c = ONE_CHANNEL, llama.config
    assert (c.pad_token_id, c.bos_token_id, c.eos_token_id) == (v.pad, v.document_mark, [v.end("text"), v.end("image")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def llama_of(trunk, vocab_size, **changes):
    fields = {"tie_word_embeddings": True, "pad_token_id": ONE_CHANNEL.pad if vocab_size > ONE_CHANNEL.pad else None, **changes}
    return shake(transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=trunk.width, intermediate_size=trunk.feed_forward, num_hidden_layers=trunk.depth,
        num_attention_heads=trunk.n_heads, num_key_value_heads=trunk.n_kv_heads, rms_norm_eps=trunk.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": trunk.rope_theta}, **fields,
    )))


@pytest.mark.parametrize("shard", ["1GB", "10KB"])
@pytest.mark.parametrize("trunk", SIZES)
def test_we_open_what_transformers_saves(trunk, shard, tmp_path):
    llama = llama_of(trunk, ONE_CHANNEL.size)
    llama.save_pretrained(tmp_path, max_shard_size=shard)
    assert (shard == "10KB") == (tmp_path / "model.safetensors.index.json").exists() or trunk.depth == 1
    lm = from_llama(tmp_path, ONE_CHANNEL).eval()
    assert lm.config.trunk == trunk
    assert_same_logits(lm, llama)


def test_there_and_back_is_the_same_model(ours, tmp_path):
    to_llama(ours, tmp_path / "a")
    back = from_llama(tmp_path / "a", ONE_CHANNEL, dropout=0.1)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True))
    assert back.config.trunk.dropout == 0.1
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    again = from_llama(tmp_path / "b", ONE_CHANNEL)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))
    other = Vocabulary([Signature("text", (20,), fingerprint="other"), Signature("image", (8,), frames=4)])
    for folder in ("a", "b"):  # the fingerprint travels through transformers
        with pytest.raises(BadInput, match=f"{other.fingerprint}"):
            from_llama(tmp_path / folder, other)


def test_a_pretrained_text_model_keeps_its_ids(tmp_path):
    """Its rows come first; the ids that it lacks start as an untrained model's."""
    llama = llama_of(SIZES[0], 20, bos_token_id=1, eos_token_id=2)
    llama.save_pretrained(tmp_path)
    lm = from_llama(tmp_path, ONE_CHANNEL).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        mine = lm.logits(lm.model(lm.model.embed_tokens(ids), torch.arange(20)[None], torch.zeros_like(ids)))
        assert torch.allclose(mine[..., :20], llama(ids).logits, rtol=0, atol=1e-5)
    assert 0.01 < lm.model.embed_tokens.weight[20:].std() < 0.03


def test_half_precision_checkpoints_open(tmp_path):
    llama_of(SIZES[1], ONE_CHANNEL.size).bfloat16().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_logits(from_llama(tmp_path, ONE_CHANNEL).eval(), llama)


# ---- refusals


def test_channels_and_latents_have_no_place_in_a_llama(lm, tmp_path):
    with pytest.raises(BadInput, match="speech, jets, tiles, voice, absent"):
        to_llama(lm, tmp_path / "x")
    with pytest.raises(BadInput, match="one-channel"):
        from_llama(tmp_path, lm.vocabulary)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def saved(tmp_path):
    to_llama(LM(DecoderConfig(SIZES[0]), ONE_CHANNEL), tmp_path)
    return tmp_path


@pytest.mark.parametrize("change, says", [
    ({"model_type": "qwen3"}, "'qwen3'"),
    ({"tie_word_embeddings": False}, "untied"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "scaled.*llama3"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled.*linear"),
    ({"attention_bias": True}, "biases"), ({"mlp_bias": True}, "biases"),
    ({"hidden_act": "gelu"}, "gelu"), ({"head_dim": 16}, "heads of size 16"), ({"quantization_config": {"bits": 4}}, "quantised"),
    ({"num_hidden_layers": 3}, "missing"), ({"num_hidden_layers": 1}, "unknown"), ({"intermediate_size": 40}, "shape"),
    ({"num_attention_heads": 5}, "does not describe"), ({"hidden_size": None}, "does not describe"),
    ({"mmtok_vocabulary": "0123"}, "0123"),
])
def test_what_differs_from_our_trunk_is_refused_by_name(saved, change, says):
    config = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "hidden_size" or v}))
    with pytest.raises(BadInput, match=says) as refusal:
        from_llama(saved, ONE_CHANNEL)
    assert "\n" not in str(refusal.value) and str(saved) in str(refusal.value)


def test_another_tokenizers_model_is_refused(tmp_path):
    llama_of(SIZES[0], 50).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="50 ids"):
        from_llama(tmp_path, ONE_CHANNEL)


def test_a_head_that_differs_from_the_embeddings_is_refused(saved):
    weights = load_file(saved / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, saved / "model.safetensors")
    from_llama(saved, ONE_CHANNEL)
    weights["lm_head.weight"] += 1
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(BadInput, match="tied"):
        from_llama(saved, ONE_CHANNEL)


def test_broken_folders_are_refused(saved, tmp_path):
    with pytest.raises(BadInput, match="no config.json"):
        from_llama(tmp_path / "nowhere", ONE_CHANNEL)
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="safetensors"):
        from_llama(saved, ONE_CHANNEL)
    (saved / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="no model.safetensors"):
        from_llama(saved, ONE_CHANNEL)
    for wrong in ("{", "[]"):
        (saved / "config.json").write_text(wrong)
        with pytest.raises(BadInput, match="JSON"):
            from_llama(saved, ONE_CHANNEL)
