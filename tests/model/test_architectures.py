"""The one trunk as the architectures of `transformers`: logits equal theirs, in both directions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.model.architectures import ARCHITECTURES, exported_as
from mmtok.model.llama import from_llama, to_llama
from mmtok.model.llama_suppress import MARGIN
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.attention import Llama3Scaling
from mmtok.nn.compiled import StaticStep
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.transformer import TransformerConfig

transformers = pytest.importorskip("transformers")

VOCABULARY = Vocabulary(
    [Signature("text", (20,), banned=(0, 4)), Signature("image", (8,), frames=4)]
)
FAR = [0, 4, *range(20, VOCABULARY.size)]
FAR.remove(VOCABULARY.end("text"))
NEAR = [i for i in range(VOCABULARY.size) if i not in FAR]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-4,
    "max_position_embeddings": 128,
}
OWN = {  # what each architecture is made for
    "llama": {"head_dim": 12},
    "mistral": {"sliding_window": 64, "head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "gemma": {"head_dim": 16},
    "olmo2": {},
}
KINDS = sorted(OWN)


def shaken(model, std=0.15):
    """Every weight is random, gains and biases among them."""
    generator = torch.Generator().manual_seed(1)
    for name, x in model.named_parameters():
        mean = 0.0
        if x.ndim == 1 and not name.endswith("bias"):
            mean = float(x.detach().mean())  # 1 of a norm's gains, 0 where they are 1 + weight
        x.data.copy_(mean + std * torch.randn(x.shape, generator=generator))
    return model.eval()


def theirs(kind, tied, n_ids=VOCABULARY.size, **changes):
    config = transformers.AutoConfig.for_model(
        kind,
        **SIZES
        | OWN[kind]
        | {"vocab_size": n_ids, "tie_word_embeddings": tied, "pad_token_id": None}
        | changes,
    )
    return shaken(transformers.AutoModelForCausalLM.from_config(config))


def trunk_of(kind):
    """A trunk with the switches of an architecture."""
    x = ARCHITECTURES[kind]
    return TransformerConfig(
        2,
        32,
        4,
        2,
        48,
        norm_eps=1e-4,
        head_dim=OWN[kind].get("head_dim"),
        qkv_bias=x.qkv_bias,
        qk_norm=x.qk_norm,
        norms=x.norms,
        activation=x.activation,
        scale_embedding=x.scale_embedding,
        sliding_window=OWN[kind].get("sliding_window"),
    )


def ours(kind, untied):
    return shaken(LM(DecoderConfig(trunk_of(kind), untied=untied, model_type=kind), VOCABULARY))


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def batch():
    """Two rows, the second padded."""
    rng = np.random.default_rng(0)
    rows = []
    for n in (20, 7):
        segment = Segment("text", codes=rng.integers(5, 20, (n, 1)))
        rows.append([to_stream(VOCABULARY, Document((segment,), (True,)))])
    return pack(VOCABULARY, rows)


@torch.no_grad()
def largest_difference(lm, model, near=slice(None)):
    b = batch()
    inside = b.document == 0
    mine = lm.logits(lm.hidden(b))[inside][:, near]
    other = model(b.ids, attention_mask=inside.long()).logits[inside][:, near]
    assert other.std() > 0.05
    return float((mine - other).abs().max())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_we_open_what_transformers_saves_and_save_it_again(kind, tied, tmp_path):
    """Logits are equal; exported it has the same type, and its tensors the same names."""
    model = theirs(kind, tied)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    lm = from_llama(tmp_path / "theirs", VOCABULARY).eval()
    assert lm.config.model_type == kind and lm.config.untied != tied
    assert largest_difference(lm, model) < 1e-5
    to_llama(lm, tmp_path / "ours")
    again = opened(tmp_path / "ours")
    assert type(again) is type(model) and again.config.model_type == kind
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, x in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], x, rtol=0, atol=2e-7)
    assert largest_difference(lm, again) < 1e-5
    back = from_llama(tmp_path / "ours", VOCABULARY).eval()
    assert back.config == lm.config
    assert largest_difference(back, model) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_files_open(kind, tmp_path):
    theirs(kind, True).bfloat16().save_pretrained(tmp_path)
    lm = from_llama(tmp_path, VOCABULARY).eval()
    assert lm.model.norm.weight.dtype == torch.float32
    assert largest_difference(lm, opened(tmp_path)) < 1e-5


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_out_of_reach_lose_and_the_others_are_equal(kind, untied, tmp_path):
    lm = ours(kind, untied)
    to_llama(lm, tmp_path, FAR)
    model = opened(tmp_path)
    assert model.config.model_type == kind
    assert largest_difference(lm, model, NEAR) < 1e-5
    with torch.no_grad():
        logits = model(batch().ids).logits
    assert bool((logits[..., FAR].amax(-1) < logits[..., NEAR].amin(-1) - MARGIN).all())
    back = from_llama(tmp_path, VOCABULARY)
    assert back.config.trunk == replace(lm.config.trunk, max_positions=32_768)
    assert back.config.untied == untied
    for name, x in lm.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], x, rtol=1e-6, atol=1e-6)


# ---- decoding


def read(trunk, x):
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    return trunk(x, position, torch.zeros_like(position))


@pytest.fixture(params=KINDS)
def trunk(request):
    return ours(request.param, True).model.requires_grad_(False)


def states(n_rows, length):
    return 0.3 * torch.randn(n_rows, length, 32, generator=torch.Generator().manual_seed(2))


def test_the_cache_reads_as_the_trunk_does(trunk):
    trunk.double()
    x = states(2, 40).double()
    decoder = KVCacheDecoder(trunk)
    parts = [decoder.forward(part) for part in x.split([12, 1, 1, 20, 6], 1)]
    assert torch.allclose(torch.cat(parts, 1), read(trunk, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("precision, error", [("bf16", 0.03), ("int8", 0.04)])
def test_rounded_weights_read_nearly_the_same(trunk, precision, error):
    x = states(2, 20)
    decoder = KVCacheDecoder(trunk, precision, batch_size=2)
    parts = [decoder.forward(x[:, :12]), *(decoder.forward(x[:, t : t + 1]) for t in range(12, 20))]
    wanted = read(trunk, x)
    assert (torch.cat(parts, 1) - wanted).norm() < error * wanted.norm()


def test_the_step_that_is_compiled_reads_as_the_trunk_does(trunk, monkeypatch):
    """Run uncompiled here: the arithmetic is the same."""
    trunk.double()

    def uncompiled(trunk, dtype, n_rows, cache_length):
        return StaticStep(trunk, dtype)

    monkeypatch.setattr("mmtok.nn.kv_cache.compiled_step", uncompiled)
    x = states(2, 20).double()
    decoder = KVCacheDecoder(trunk, batch_size=2, compile_length=20)
    parts = [decoder.forward(x[:, :5]), *(decoder.forward(x[:, t : t + 1]) for t in range(5, 20))]
    assert torch.allclose(torch.cat(parts, 1), read(trunk, x), rtol=0, atol=1e-10)
    static = StaticStep(trunk, torch.float64)
    assert static.has_weights_of(trunk)
    for parameter in trunk.layers.parameters():
        parameter.add_(1)
        assert not static.has_weights_of(trunk)
        parameter.sub_(1)
        parameter.copy_(parameter.round(decimals=9))
        static = StaticStep(trunk, torch.float64)


def test_every_weight_learns(trunk):
    trunk.requires_grad_(True)
    read(trunk, states(2, 12)).square().sum().backward()
    flat = [name for name, x in trunk.named_parameters() if x.grad is None or not x.grad.any()]
    # a softmax over keys does not change with a constant, so a bias of keys turns alone
    assert flat == ["embed_tokens.weight"]


def test_products_under_autocast_are_those_of_bfloat16(trunk):
    x = states(2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = read(trunk, x)
    wanted = read(trunk, x)
    assert rounded.dtype == torch.float32
    assert (rounded - wanted).norm() < 0.03 * wanted.norm()


# ---- refusals


def test_rows_longer_than_a_sliding_window_are_refused():
    trunk = ours("mistral", False).model
    read(trunk, states(1, 64))
    with pytest.raises(UserError, match="65 positions are more than the 64"):
        read(trunk, states(1, 65))
    decoder = KVCacheDecoder(trunk)
    decoder.forward(states(1, 64))
    with pytest.raises(UserError, match="sliding_window"):
        decoder.forward(states(1, 1))


def test_switches_of_two_architectures_cannot_be_exported(tmp_path):
    mixed = replace(trunk_of("olmo2"), qkv_bias=True)
    lm = LM(DecoderConfig(mixed), VOCABULARY)
    with pytest.raises(UserError, match="qkv_bias True, qk_norm all_heads, norms after"):
        to_llama(lm, tmp_path)
    assert not any(tmp_path.iterdir())
    assert exported_as(trunk_of("qwen3"), "llama").model_type == "qwen3"
    assert exported_as(trunk_of("llama"), "mistral").model_type == "mistral"


@pytest.mark.parametrize(
    "kind, change, says",
    [
        ("mistral", {"model_type": "mixtral", "num_local_experts": 8}, "mixtral.*experts"),
        ("qwen3", {"model_type": "qwen3_moe", "num_experts": 8}, "qwen3_moe.*experts"),
        ("gemma", {"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "gemma2.*caps"),
        ("gemma", {"model_type": "gemma3", "text_config": {"a": 1}}, "gemma3.*more than text"),
        ("llama", {"model_type": "gpt2"}, "'gpt2'; what can be opened is llama, mistral, qwen2"),
        ("llama", {"model_type": ["llama"]}, "type \\['llama'\\]"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "sliding window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": "all"}, "layer_types is 'all', where a list"),
        ("qwen3", {"attention_bias": True}, "biases"),
        ("olmo2", {"attention_bias": True}, "biases"),
        ("gemma", {"hidden_act": "silu"}, "activation is 'silu', not 'gelu_pytorch_tanh'"),
        ("gemma", {"use_bidirectional_attention": True}, "both directions"),
        ("qwen2", {"hidden_act": "gelu_pytorch_tanh"}, "activation is 'gelu_pytorch_tanh'"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "scaled in the way 'linear'",
        ),
        ("mistral", {"sliding_window": "wide"}, "sliding_window is 'wide'"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen3", {"head_dim": 15}, "even size.*head_dim 15"),
        ("qwen3", {"head_dim": 8}, "shape"),
        ("gemma", {"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_what_no_trunk_can_be_is_refused_by_name(kind, change, says, tmp_path):
    theirs(kind, True).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=says) as refusal:
        from_llama(tmp_path, VOCABULARY)
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize(
    "kind, left_out, trunk",
    [
        ("gemma", ["hidden_act", "tie_word_embeddings"], {"activation": "gelu_tanh"}),
        ("gemma", ["hidden_act"], {}),
        ("mistral", ["sliding_window"], {"sliding_window": 4096}),
        ("olmo2", ["rms_norm_eps"], {"norm_eps": 1e-5}),
        ("qwen2", ["rms_norm_eps"], {"norm_eps": 1e-6}),
    ],
)
def test_fields_that_a_config_leaves_out_are_the_architectures_own(kind, left_out, trunk, tmp_path):
    """As transformers fills them in."""
    theirs(kind, True).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: x for k, x in config.items() if k not in left_out}))
    lm = from_llama(tmp_path, VOCABULARY).eval()
    for name, value in trunk.items():
        assert getattr(lm.config.trunk, name) == value
    assert largest_difference(lm, opened(tmp_path)) < 1e-5


def test_the_first_gemmas_say_gelu_and_mean_it_by_tanh(tmp_path):
    theirs("gemma", True).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    for act in ({"hidden_act": "gelu", "hidden_activation": None}, {"hidden_act": "gelu"}):
        path.write_text(json.dumps(json.loads(path.read_text()) | act))
        assert from_llama(tmp_path, VOCABULARY).config.trunk.activation == "gelu_tanh"


def test_rotary_positions_may_be_scaled_in_each(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = theirs("qwen3", True, rope_parameters=rope)
    model.save_pretrained(tmp_path)
    lm = from_llama(tmp_path, VOCABULARY).eval()
    assert lm.config.trunk.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)
    assert largest_difference(lm, model) < 1e-5
