r"""Latent diffusion of jets: an autoencoder of whole jets, and a diffusion of its few latents.

The autoencoder reads a jet's particles as a set and says it in 8 latents of 8 numbers, trained by
optimal transport between particles and decoded ones. The head draws the latents all at once
(Rombach et al. 2022, arXiv 2112.10752, with the transformer of Peebles and Xie 2023).

    mmtok train recipes/latent_jets.py --path jets.npz
    mmtok sample runs/latent_jets --to jets -n 1000
    mmtok evaluate runs/latent_jets

With captions, a line of FILE per jet, the task can be conditional, and guided:

    mmtok train recipes/latent_jets.py --path jets.npz --labels FILE \
        --tasks '[{"inputs": ["caption"], "targets": ["jets"], "cond_dropout": 0.1}]'
"""

from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import EDM
from mmtok.heads.diffusion import GridDiffusion
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.jets import JetFile
from mmtok.tokenizers.jet_autoencoder import JetAutoencoderConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="latent_jets",
    sources=(JetFile(path=""),),
    tokenizers={"text": BytesConfig(), "jets": JetAutoencoderConfig()},
    tasks=(Task((), ("jets",)),),
    model=DecoderConfig(
        # the trunk only reads the condition; the head draws
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=176),
        # a token is a latent; the root mean square of each number is 1
        heads={
            "jets": GridDiffusion(
                schedule=EDM(sigma_data=1.0, p_mean=-0.5),
                sampler=Heun(),
                steps=18,
                network=DiTConfig(4, 96, 4),
                grid=(1, 8),
            )
        },
    ),
    # some 100 jets per step
    train=TrainConfig(
        steps=3000,
        batch_size=4,
        seq_len=256,
        learning_rate=1e-3,
        warmup=100,
        ema_decay=0.998,
    ),
)
