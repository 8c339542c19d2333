r"""Natural pictures from their captions: latent diffusion, or codes in any order.

A KL autoencoder of patches is trained first, then the decoder, which reads the caption and draws
all latents of a picture at once (Rombach et al. 2022; Peebles and Xie 2023). FOLDER holds pictures
by name, a table of captions, or any layout of docs/tutorials/your_pictures.md.

    mmtok train recipes/pictures.py --path FOLDER
    mmtok sample runs/pictures --prompt "a red fox in the snow" --to image -n 16
    mmtok evaluate runs/pictures --guidance 1 1.5 2 3

The last line says which guidance to take: the least Fréchet distance among pictures that show their
names well enough. Pictures of 64 pixels, with as many latents:

    mmtok train recipes/pictures.py --path FOLDER --name pictures64 \
        --tokenizers.image.height 64 --tokenizers.image.width 64 --tokenizers.image.patch 8

Codes in any order, by masked diffusion (Sahoo et al. 2024), whose pictures can be infilled too:

    mmtok train recipes/pictures.py --path FOLDER --name picture_codes \
        --tokenizers.image '{"kind": "VQPatchesConfig", "height": 32, "width": 32, "channels": 3,
            "patch": 4, "quantizer": {"kind": "VQ", "n_codes": 512, "rotation": true},
            "autoencoder": {"kind": "StagedConv", "width": 64}, "steps": 8000}' \
        --heads.image '{"kind": "MaskedDiffusion",
            "network": {"depth": 8, "width": 256, "n_heads": 8}, "steps": 32}'
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
from mmtok.sources.images import ImageFolder
from mmtok.tokenizers.autoencoders import StagedConv
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="pictures",
    sources=(ImageFolder(path=""),),
    tokenizers={
        "text": BytesConfig(),
        "image": KLPatchesConfig(
            height=32,
            width=32,
            channels=3,
            patch=4,
            latent_size=8,
            autoencoder=StagedConv(width=64),
            steps=8000,
        ),
    },
    # guidance needs documents trained without their condition
    tasks=(Task(("caption",), ("image",), cond_dropout=0.1),),
    model=DecoderConfig(
        # the trunk only reads the caption; the head draws
        trunk=TransformerConfig(depth=4, width=256, n_heads=4, n_kv_heads=4, feed_forward=704),
        # latents have variance 1, twice what EDM's noise levels were made for
        heads={
            "image": GridDiffusion(
                schedule=EDM(sigma_data=1.0, p_mean=-0.5),
                sampler=Heun(),
                steps=18,
                network=DiTConfig(8, 256, 8),
            )
        },
    ),
    # captions of up to 190 bytes, and 64 frames
    train=TrainConfig(
        steps=20_000,
        batch_size=16,
        seq_len=256,
        learning_rate=1e-3,
        warmup=500,
        ema_decay=0.999,
    ),
    sampling={"image": Sampling(guidance=1.5)},
)
