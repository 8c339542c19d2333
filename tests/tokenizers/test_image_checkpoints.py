"""Published image tokenizers of tiny random weights: the codes and pictures of their own code, by
every name that they have, and clear words where they cannot be used.
"""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.nn.vqgan import VQGAN, VQGANSizes
from mmtok.tokenizers import load
from mmtok.tokenizers.image_checkpoints import ImageCheckpointConfig
from mmtok.tokenizers.image_models import DIFFUSERS, read_model

transformers = pytest.importorskip("transformers")
TINY = dict(base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, latent_channels=8)
SIZE = dict(height=8, width=12)
PICTURES = list(np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8))


def as_tensor(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def written(folder, tensors, config=None):
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def janus():
    torch.manual_seed(0)
    config = transformers.models.janus.configuration_janus.JanusVQVAEConfig(
        **TINY, embed_dim=4, num_embeddings=16, num_patches=4
    )
    network = transformers.models.janus.modeling_janus.JanusVQVAE(config).eval()
    torch.nn.init.normal_(network.quantize.embedding.weight)
    return network


def to_pixels(image):
    return ((image[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def same_round_trip(tokenizer, tmp_path):
    segments = tokenizer.encode_batch(PICTURES)
    pictures = tokenizer.decode_batch(segments)
    tokenizer.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.signature == tokenizer.signature
    for picture, segment, copy in zip(PICTURES, segments, pictures):
        assert np.array_equal(again.encode(picture).values, segment.values)
        assert np.array_equal(again.decode(segment), copy)
    assert tokenizer.fidelity(PICTURES)["psnr_db"] > 0
    return segments, pictures


@pytest.mark.parametrize("prefix", ["", "model.vqmodel."])
def test_janus_gives_what_its_own_code_does(prefix, tmp_path):
    network = janus()
    tensors = {prefix + k: v for k, v in network.state_dict().items()}
    if prefix:
        tensors["lm_head.weight"] = torch.zeros(3, 3)
    path = written(tmp_path / "janus", tensors, {"model_type": "janus_vqgan"})
    config = ImageCheckpointConfig(path, **SIZE)
    assert config.takes == {"height": 8, "width": 12, "channels": 3}
    tokenizer = config.build()
    assert config.signature().levels == tokenizer.signature.levels == (16,)
    assert tokenizer.signature.frames == 24
    segments, pictures = same_round_trip(tokenizer, tmp_path)
    network.quantize.quant_state_dims = [4, 6]
    for picture, segment, copy in zip(PICTURES, segments, pictures):
        with torch.no_grad():
            codes = network.encode(as_tensor(picture), return_dict=True).image_tokens
            image = network.decode(codes.view(1, -1))
        assert np.array_equal(codes.view(-1).numpy(), segment.codes[:, 0])
        assert np.abs(to_pixels(image).astype(int) - copy).max() <= 1


def test_llamagen_is_the_same_network_by_other_names(tmp_path):
    tensors = {}
    for name, value in janus().state_dict().items():
        name = re.sub(r"^encoder\.down\.(\d+)\.block", r"encoder.conv_blocks.\1.res", name)
        name = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", name)
        name = re.sub(r"^decoder\.up\.(\d+)\.block", r"decoder.conv_blocks.\1.res", name)
        name = re.sub(r"^decoder\.up\.", "decoder.conv_blocks.", name)
        name = name.replace("mid.block_1", "mid.0").replace("mid.attn_1", "mid.1")
        tensors[name.replace("mid.block_2", "mid.2")] = value
    tensors["quantize.codebook_used"] = torch.zeros(9)
    (tmp_path / "llamagen").mkdir()
    torch.save({"model": tensors, "steps": 3}, tmp_path / "llamagen" / "vq.pt")
    tokenizer = ImageCheckpointConfig(str(tmp_path / "llamagen"), **SIZE).build()
    segments, pictures = same_round_trip(tokenizer, tmp_path)
    network = janus()
    network.quantize.quant_state_dims = [4, 6]
    with torch.no_grad():  # its vectors are looked up by the angle, its codes have length 1
        z = network.quant_conv(network.encoder(as_tensor(PICTURES[0])))[0].flatten(1).T
        book = torch.nn.functional.normalize(network.quantize.embedding.weight, dim=1)
        codes = (torch.nn.functional.normalize(z, dim=1) @ book.T).argmax(1)
        image = network.decode(codes[None])
    assert np.array_equal(segments[0].codes[:, 0], codes.numpy())
    assert np.abs(to_pixels(image).astype(int) - pictures[0]).max() <= 1


def test_the_first_vqgans_have_their_levels_the_other_way_round(tmp_path):
    tensors = {}
    for name, value in janus().state_dict().items():
        if name.startswith("decoder.up."):
            parts = name.split(".")
            parts[2] = str(1 - int(parts[2]))
            name = ".".join(parts)
        tensors[name] = value
    model, weights = read_model(written(tmp_path / "taming", tensors))
    assert weights.keys() == janus().state_dict().keys() == model.make().state_dict().keys()


def kl_weights():
    torch.manual_seed(0)
    sizes = VQGANSizes((32, 64), 1, (), z_channels=4, code_size=4, n_codes=0)
    return VQGAN(sizes).eval()


def as_diffusers(tensors):
    pairs = [
        ("encoder.down.#.block.", "encoder.down_blocks.#.resnets."),
        ("encoder.down.#.downsample.", "encoder.down_blocks.#.downsamplers.0."),
        ("decoder.up.#.block.", "decoder.up_blocks.#.resnets."),
        ("decoder.up.#.upsample.", "decoder.up_blocks.#.upsamplers.0."),
        (".mid.block_1.", ".mid_block.resnets.0."),
        (".mid.block_2.", ".mid_block.resnets.1."),
        (".attn_1.norm.", ".attn_1.group_norm."),
        (".attn_1.q.", ".attn_1.to_q."),
        (".attn_1.k.", ".attn_1.to_k."),
        (".attn_1.v.", ".attn_1.to_v."),
        (".attn_1.proj_out.", ".attn_1.to_out.0."),
        (".mid.attn_1.", ".mid_block.attentions.0."),
        (".nin_shortcut.", ".conv_shortcut."),
        (".norm_out.", ".conv_norm_out."),
    ]
    found = {}
    for name, value in tensors.items():
        for ours, theirs in pairs:
            pattern = re.escape(ours).replace(r"\#", r"(\d+)")
            name = re.sub(pattern, theirs.replace("#", r"\1"), name)
        if "attentions" in name and value.ndim == 4:
            value = value[:, :, 0, 0]
        found[name] = value
    return found


def test_latents_of_diffusers_autoencoder(tmp_path):
    network = kl_weights()
    config = {"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "shift_factor": 0.1}
    tensors = as_diffusers(network.state_dict())
    assert not tensors.keys() & {"encoder.mid.block_1.norm1.weight"}
    path = written(tmp_path / "vae", tensors, config)
    for folder in (path, str(tmp_path)):  # of a whole pipeline too
        tokenizer = ImageCheckpointConfig(folder, **SIZE).build()
        assert tokenizer.signature.latent_size == 4 and tokenizer.signature.levels == ()
    segments, pictures = same_round_trip(tokenizer, tmp_path)
    with torch.no_grad():
        z = network.encoded(as_tensor(PICTURES[0]))
        image = network.decoded(z)
    torch.testing.assert_close(
        torch.from_numpy(segments[0].latents), (z.flatten(0, 2) - 0.1) * 0.5, atol=1e-5, rtol=0
    )
    assert np.abs(to_pixels(image).astype(int) - pictures[0]).max() <= 1


def test_diffusers_own_code_agrees(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    ).eval()
    theirs.save_pretrained(tmp_path / "vae")
    tokenizer = ImageCheckpointConfig(str(tmp_path / "vae"), **SIZE).build()
    segment = tokenizer.encode(PICTURES[0])
    with torch.no_grad():
        mean = theirs.encode(as_tensor(PICTURES[0])).latent_dist.mean
        image = theirs.decode(mean).sample
    scaled = mean[0].flatten(1).T * theirs.config.scaling_factor
    torch.testing.assert_close(torch.from_numpy(segment.latents), scaled, atol=1e-5, rtol=0)
    assert np.abs(to_pixels(image).astype(int) - tokenizer.decode(segment)).max() <= 1
    assert DIFFUSERS


def test_emu3_gives_what_its_own_code_does(tmp_path):
    torch.manual_seed(0)
    settings = transformers.Emu3VQVAEConfig(
        codebook_size=16,
        embed_dim=4,
        latent_channels=4,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        attn_resolutions=[1],
        hidden_size=32,
    )
    network = transformers.Emu3VQVAE(settings).eval()
    network.save_pretrained(tmp_path / "emu3")
    tokenizer = ImageCheckpointConfig(str(tmp_path / "emu3"), **SIZE).build()
    segments, pictures = same_round_trip(tokenizer, tmp_path)
    with torch.no_grad():
        codes = network.encode(as_tensor(PICTURES[0]), torch.tensor([[8, 12]])).image_tokens[0]
        image = network.decode(codes[None])
    assert np.array_equal(segments[0].codes[:, 0], codes.flatten().numpy())
    assert np.abs(to_pixels(image).astype(int) - pictures[0]).max() <= 1


def test_a_model_without_a_decoder_is_refused(tmp_path):
    config = transformers.models.chameleon.configuration_chameleon.ChameleonVQVAEConfig(
        **TINY, embed_dim=4, num_embeddings=16, resolution=8
    )
    network = transformers.models.chameleon.modeling_chameleon.ChameleonVQVAE(config)
    network.save_pretrained(tmp_path / "chameleon")
    with pytest.raises(UserError, match="no decoder, so that codes would give no pictures"):
        ImageCheckpointConfig(str(tmp_path / "chameleon"), **SIZE).check()


def test_wrong_sizes_folders_and_frames_are_refused(tmp_path):
    tensors = dict(janus().state_dict())
    path = written(tmp_path / "janus", tensors, {"model_type": "janus_vqgan"})
    for size in ({"height": 9}, {"width": 1}):
        with pytest.raises(UserError, match="multiples of its stride, 2 pixels"):
            ImageCheckpointConfig(path, **SIZE | size).check()
    tokenizer = ImageCheckpointConfig(path, **SIZE).build()
    with pytest.raises(UserError, match="takes 8 x 12"):
        tokenizer.encode(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="RGB"):
        tokenizer.encode(np.zeros((8, 12), np.uint8))
    with pytest.raises(UserError, match="needs 24"):
        tokenizer.decode(Segment("image", codes=np.zeros((23, 1), int)))
    del tensors["decoder.conv_out.weight"]
    cut = written(tmp_path / "cut", tensors, {"model_type": "janus_vqgan"})
    with pytest.raises(UserError, match="1 weights are missing"):
        ImageCheckpointConfig(cut, **SIZE).build()
    other = written(tmp_path / "other", {"x": torch.zeros(2)})
    with pytest.raises(UserError, match="no image tokenizer that is known"):
        ImageCheckpointConfig(other, **SIZE).check()
    with pytest.raises(UserError, match="0 files of weights"):
        (tmp_path / "empty").mkdir()
        ImageCheckpointConfig(str(tmp_path / "empty"), **SIZE).check()
    vae = written(
        tmp_path / "vae", as_diffusers(kl_weights().state_dict()), {"_class_name": "AutoencoderKL"}
    )
    with pytest.raises(UserError, match="NaN or infinite"):
        ImageCheckpointConfig(vae, **SIZE).build().decode(
            Segment("image", latents=np.full((24, 4), np.nan, np.float32))
        )
