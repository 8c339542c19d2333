"""Latent diffusion: whole pictures in the latents of an autoencoder, given what was read before.

Rombach et al. 2022 with the transformer of Peebles and Xie 2023. The condition is the decoder's
state where the picture begins: here of a name; with other tasks of a longer text, or of any other
modality. By default scikit-learn's digits; for a folder of pictures see latent_images.py, whose two
flags are the same.

    mmtok train recipes/latent_diffusion.py
    mmtok sample runs/latent_diffusion --prompt seven --to image -n 16 --guidance 2
    mmtok sample runs/latent_diffusion --to image
"""

from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import EDM
from mmtok.heads.diffusion import GridDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ScannedDigits
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="latent_diffusion",
    sources=(ScannedDigits(),),
    tokenizers={"text": BytesConfig(), "image": KLPatchesConfig(latent_size=3, kl_weight=1e-2)},
    # guidance needs documents trained without their condition
    tasks=(Task(("caption",), ("image",), cond_dropout=0.1),),
    model=DecoderConfig(
        # the trunk only reads the name; the head draws
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=176),
        # A token is a patch. The latents' root mean square is 1, twice what EDM's noise levels were
        # made for, so sigma_data and p_mean are larger too.
        heads={
            "image": GridDiffusion(
                schedule=EDM(sigma_data=1.0, p_mean=-0.5),
                sampler=Heun(),
                steps=18,
                network=DiTConfig(4, 128, 4),
            )
        },
    ),
    train=TrainConfig(
        steps=2000,
        batch_size=16,
        seq_len=256,
        learning_rate=2e-3,
        warmup=100,
        ema_decay=0.995,
        log_every=50,
    ),
    sampling={"image": Sampling(guidance=1.5)},
)
