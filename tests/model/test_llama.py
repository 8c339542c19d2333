"""The trunk is a Llama: logits equal transformers' on shared random weights, saved by either and
opened by the other.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained, Parallel
from mmtok.model.llama import from_llama, llama_sizes, load_llama, to_llama
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.attention import Llama3Scaling
from mmtok.nn.transformer import TransformerConfig

transformers = pytest.importorskip("transformers")

ONE_CHANNEL = Vocabulary([Signature("text", (20,)), Signature("image", (8,), frames=4)])
SIZES = [
    TransformerConfig(2, 32, 4, 4, 48),
    TransformerConfig(3, 48, 6, 2, 64, rope_theta=500.0, norm_eps=1e-3),
    TransformerConfig(1, 16, 4, 1, 24),
    TransformerConfig(
        2, 64, 2, 1, 48, rope_theta=100.0, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)
    ),
]
IDS = ["all_heads", "grouped", "one_kv_head", "scaled"]


def shake(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
    return model.eval()


@pytest.fixture(
    params=[(trunk, untied) for untied in (False, True) for trunk in SIZES],
    ids=[x + y for y in ("", "_untied") for x in IDS],
)
def ours(request):
    trunk, untied = request.param
    return shake(LM(DecoderConfig(trunk, untied=untied), ONE_CHANNEL))


def batch():
    """Two rows, the second padded."""

    def codes(k, n):
        return np.random.default_rng(n).integers(0, k, (n, 1))

    long = Document(
        (Segment("text", codes=codes(20, 9)), Segment("image", codes=codes(8, 4))), (True, True)
    )
    short = Document((Segment("text", codes=codes(20, 3)),), (True,))
    return pack(ONE_CHANNEL, [[to_stream(ONE_CHANNEL, d)] for d in (long, short)])


def assert_same_logits(lm, llama):
    b = batch()
    inside = b.document == 0
    assert (~inside).any() and (b.ids[~inside] == llama.config.pad_token_id).all()
    with torch.no_grad():
        mine = lm.logits(lm.hidden(b))
        theirs = llama(b.ids, attention_mask=inside.long()).logits
    assert mine.shape == theirs.shape and theirs[inside].std() > 0.05
    assert torch.allclose(mine[inside], theirs[inside], rtol=0, atol=1e-5)


def test_transformers_opens_what_we_save(ours, tmp_path):
    to_llama(ours, tmp_path)
    llama = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, local_files_only=True
    ).eval()
    assert type(llama).__name__ == "LlamaForCausalLM" and llama.dtype == torch.float32
    assert_same_logits(ours, llama)
    v = ONE_CHANNEL
    c = llama.config
    assert (c.pad_token_id, c.bos_token_id, c.eos_token_id) == (
        v.pad,
        v.document_mark,
        [v.end("text"), v.end("image")],
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def rope_of(trunk):
    x = trunk.rope_scaling
    if x is None:
        return {"rope_type": "default", "rope_theta": trunk.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": trunk.rope_theta,
        "factor": x.factor,
        "low_freq_factor": x.low_freq_factor,
        "high_freq_factor": x.high_freq_factor,
        "original_max_position_embeddings": x.original_positions,
    }


def llama_of(trunk, vocab_size, **changes):
    fields = {
        "tie_word_embeddings": True,
        "pad_token_id": ONE_CHANNEL.pad if vocab_size > ONE_CHANNEL.pad else None,
        **changes,
    }
    return shake(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=trunk.width,
                intermediate_size=trunk.feed_forward,
                num_hidden_layers=trunk.depth,
                num_attention_heads=trunk.n_heads,
                num_key_value_heads=trunk.n_kv_heads,
                rms_norm_eps=trunk.norm_eps,
                rope_parameters=rope_of(trunk),
                **fields,
            )
        )
    )


@pytest.mark.parametrize("shard", ["1GB", "10KB"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trunk", SIZES, ids=IDS)
def test_we_open_what_transformers_saves(trunk, tied, shard, tmp_path):
    llama = llama_of(trunk, ONE_CHANNEL.size, tie_word_embeddings=tied)
    llama.save_pretrained(tmp_path, max_shard_size=shard)
    assert (shard == "10KB") == (
        tmp_path / "model.safetensors.index.json"
    ).exists() or trunk.depth == 1
    lm = from_llama(tmp_path, ONE_CHANNEL).eval()
    assert (
        lm.config.trunk == replace(trunk, max_positions=llama.config.max_position_embeddings)
        and lm.config.untied != tied
    )
    assert_same_logits(lm, llama)


def test_there_and_back_is_the_same_model(ours, tmp_path):
    to_llama(ours, tmp_path / "a")
    back = from_llama(tmp_path / "a", ONE_CHANNEL, dropout=0.1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True)
    )
    assert back.config.trunk.dropout == 0.1
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(
        tmp_path / "b"
    )
    again = from_llama(tmp_path / "b", ONE_CHANNEL)
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True)
    )
    other = Vocabulary(
        [Signature("text", (20,), fingerprint="other"), Signature("image", (8,), frames=4)]
    )
    for folder in ("a", "b"):  # the fingerprint travels through transformers
        with pytest.raises(UserError, match=f"{other.fingerprint}"):
            from_llama(tmp_path / folder, other)


@pytest.mark.parametrize("said, kept", [(4096, 4096), (131_072, 131_072), (None, 32_768)])
def test_the_context_length_is_the_starts(said, kept, tmp_path):
    """There and back twice; a checkpoint that names none gets ours."""
    llama_of(SIZES[3], ONE_CHANNEL.size, max_position_embeddings=said or 64).save_pretrained(
        tmp_path / "start"
    )
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    if said is None:
        del config["max_position_embeddings"]
        (tmp_path / "start" / "config.json").write_text(json.dumps(config))
    for before, after in (("start", "a"), ("a", "b")):
        to_llama(from_llama(tmp_path / before, ONE_CHANNEL), tmp_path / after)
        assert (
            transformers.AutoConfig.from_pretrained(tmp_path / after).max_position_embeddings
            == kept
        )


def test_scaled_positions_are_those_of_transformers():
    """Far beyond the original positions, every frequency: kept, interpolated, slowed down."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for scaling, theta, size in (
        (Llama3Scaling(8.0, 1.0, 4.0, 8192), 500_000.0, 128),
        (Llama3Scaling(32.0, 1.0, 4.0, 8192), 500_000.0, 64),
    ):
        trunk = TransformerConfig(1, size, 1, 1, 8, rope_theta=theta, rope_scaling=scaling)
        theirs, factor = ROPE_INIT_FUNCTIONS["llama3"](llama_of(trunk, 8).config, "cpu")
        plain = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        assert factor == 1 and torch.allclose(scaling(plain), theirs, rtol=1e-5, atol=0)
        kinds = (theirs / plain).round(decimals=5)
        assert (
            kinds.max() == 1
            and kinds.min() == 1 / scaling.factor
            and ((kinds > 1 / scaling.factor) & (kinds < 1)).any()
        )
    with pytest.raises(ValueError, match="low_freq_factor"):
        Llama3Scaling(low_freq_factor=4.0)


MANY = Vocabulary(
    [
        Signature("text", (20,), banned=(1, 2)),
        Signature("speech", (5,) * 6),
        Signature("image", (8,), frames=4),
        Signature("jets", (6, 4, 3), descending=True),
        Signature("voice", latent_size=3),
    ]
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trunk", SIZES, ids=IDS)
def test_a_pretrained_text_model_keeps_its_ids_and_learns_modalities(trunk, tied, tmp_path):
    """Its rows come first and speak as before; the marks around a text stand for its own;
    everything else is untrained.
    """
    llama = llama_of(trunk, 20, bos_token_id=1, eos_token_id=[2, 5], tie_word_embeddings=tied)
    llama.save_pretrained(tmp_path)
    config = llama_sizes(
        tmp_path,
        DecoderConfig(
            TransformerConfig(dropout=0.1),
            {"speech": Parallel(), "jets": Chained(8)},
            totals={"jets": 3},
        ),
    )
    assert config.trunk.dropout == 0.1 and config.totals == {"jets": 3} and config.untied != tied
    lm = LM(config, MANY).eval()
    before = copy.deepcopy(lm)
    load_llama(lm, tmp_path)
    text = torch.arange(3, 20).repeat(3)
    with torch.no_grad():
        mine = torch.cat([torch.tensor([MANY.document_mark]), text])[None]
        theirs = llama(torch.cat([torch.tensor([1]), text])[None]).logits
        mine = lm.logits(
            lm.model(
                lm.model.embed_tokens(mine),
                torch.arange(mine.shape[1])[None],
                torch.zeros_like(mine),
            )
        )
    assert theirs.std() > 0.05 and torch.allclose(mine[..., :20], theirs, rtol=0, atol=1e-5)
    assert torch.allclose(mine[..., MANY.end("text")], theirs[..., 2], rtol=0, atol=1e-5)
    assert torch.equal(
        lm.model.embed_tokens.weight[MANY.begin("text")], llama.model.embed_tokens.weight[1]
    )
    assert 0.015 < lm.id_weight[MANY.begin("speech") :].std() < 0.025
    same = {
        name for name, x in lm.state_dict().items() if torch.equal(x, before.state_dict()[name])
    }
    assert (
        same == {name for name in lm.state_dict() if not name.startswith(("model.", "lm_head."))}
        and "latent_in.voice.weight" in same
    )


def test_marks_that_a_checkpoint_has_no_ids_for_are_said_to_start_untrained(tmp_path):
    llama_of(SIZES[0], 20, bos_token_id=1, eos_token_id=None).save_pretrained(tmp_path)
    v = Vocabulary([Signature("text", (20,))])
    lm = LM(llama_sizes(tmp_path, DecoderConfig()), v)
    before = lm.model.embed_tokens.weight[v.end("text")].clone()
    with pytest.warns(UserWarning, match="names no eos_token_id among its ids") as said:
        load_llama(lm, tmp_path)
    table = lm.model.embed_tokens.weight
    assert (
        len(said) == 1
        and torch.equal(table[v.end("text")], before)
        and torch.equal(table[v.document_mark], table[1])
    )


def test_half_precision_checkpoints_open(tmp_path):
    llama_of(SIZES[1], ONE_CHANNEL.size).bfloat16().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_logits(from_llama(tmp_path, ONE_CHANNEL).eval(), llama)


# ---- refusals


def test_channels_and_latents_have_no_place_in_a_llama(lm, tmp_path):
    with pytest.raises(UserError, match="speech, jets, tiles, voice, absent"):
        to_llama(lm, tmp_path / "x")
    with pytest.raises(UserError, match="one-channel"):
        from_llama(tmp_path, lm.vocabulary)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def saved(tmp_path):
    to_llama(LM(DecoderConfig(SIZES[0]), ONE_CHANNEL), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "qwen3"}, "missing.*k_norm"),
        ({"tie_word_embeddings": False}, "missing.*lm_head"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}},
            "scaled.*yarn",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
            "does not describe.*low_freq_factor",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "scaled.*linear",
        ),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"head_dim": 16}, r"q_proj.weight has shape \(32, 32\)"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unknown"),
        ({"intermediate_size": 40}, "shape"),
        ({"num_attention_heads": 5}, "does not describe"),
        ({"hidden_size": None}, "does not describe"),
        ({"mmtok_vocabulary": "0123"}, "0123"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"hidden_size": 32.0}, "hidden_size is 32.0, where a whole"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": [4]}, r"num_key_value_heads is \[4\]"),
        ({"head_dim": "8"}, "head_dim is '8'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', where a number"),
        ({"rope_parameters": "llama3"}, "rope_parameters is 'llama3', where an"),
        ({"rope_scaling": 2}, "rope_scaling is 2, where an"),
        ({"rope_parameters": None, "rope_theta": "ten"}, "rope_theta is 'ten'"),
        ({"rope_parameters": None, "rope_theta": -1}, "a is -1"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta is nan"),
        ({"tie_word_embeddings": "yes"}, "'yes', where true or false"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": "8"}}, "factor is '8'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, where a whole"),
        ({"max_position_embeddings": "4k"}, "is '4k'"),
    ],
)
def test_what_differs_from_our_trunk_is_refused_by_name(saved, change, says):
    config = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "hidden_size" or v})
    )
    with pytest.raises(UserError, match=says) as refusal:
        from_llama(saved, ONE_CHANNEL)
    assert "\n" not in str(refusal.value) and str(saved) in str(refusal.value)


def test_another_tokenizers_model_is_refused(tmp_path):
    llama_of(SIZES[0], 50).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="50 ids"):
        from_llama(tmp_path, ONE_CHANNEL)


def test_a_head_that_differs_from_the_embeddings_is_refused(saved):
    weights = load_file(saved / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, saved / "model.safetensors")
    from_llama(saved, ONE_CHANNEL)
    weights["lm_head.weight"] += 1
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(UserError, match="tied"):
        from_llama(saved, ONE_CHANNEL)


def test_broken_folders_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        from_llama(tmp_path / "nowhere", ONE_CHANNEL)
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="safetensors"):
        from_llama(saved, ONE_CHANNEL)
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        from_llama(saved, ONE_CHANNEL)
    for index in ({"weight_map": ["a"]}, {"weight_map": {"a": 1}}, {}):
        (saved / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="model.safetensors.index.json names no files"):
            from_llama(saved, ONE_CHANNEL)
    for wrong in ("{", "[]"):
        (saved / "config.json").write_text(wrong)
        with pytest.raises(UserError, match="JSON"):
            from_llama(saved, ONE_CHANNEL)
