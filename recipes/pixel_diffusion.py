r"""Flow matching in pixels: all pixels at once, with a bound in bits per value.

Lipman et al. 2023 with the transformer of Peebles and Xie 2023 over patches of pixels. There is no
autoencoder: the score is that of the picture. By default scikit-learn's digits, which have 17 grey
values; other pictures have 256.

    mmtok train recipes/pixel_diffusion.py
    mmtok sample runs/pixel_diffusion --prompt seven --to image -n 16 --guidance 2
    mmtok score runs/pixel_diffusion runs/pixel_diffusion/samples/asked/seven-000.png \
        --condition seven

A folder of pictures:

    mmtok train recipes/pixel_diffusion.py \
        --sources '[{"kind": "ImageFolder", "path": "FOLDER"}]' \
        --tasks '[{"inputs": ["caption"], "targets": ["image"], "cond_dropout": 0.1}]' \
        --tokenizers.image '{"kind": "PixelLatentsConfig", "height": 16, "width": 16,
            "channels": 3, "n_levels": 256, "patch": 2}'
"""

from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import CondOT
from mmtok.heads.diffusion import GridDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ScannedDigits
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="pixel_diffusion",
    sources=(ScannedDigits(copies=18, noise=0.0),),  # noise would be learned, and be drawn
    tokenizers={"text": BytesConfig(), "image": PixelLatentsConfig(8, 8, 1, n_levels=17, patch=2)},
    # shifted scans teach more than there are; their captions tell them apart, or what is drawn by
    # name alone would be shifted too
    tasks=(Task(("caption",), ("image",), cond_dropout=0.2), Task(("view_caption",), ("view",))),
    model=DecoderConfig(
        # the trunk only reads the name; the head draws
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=176),
        heads={
            "image": GridDiffusion(
                schedule=CondOT(), sampler=Heun(), steps=25, network=DiTConfig(6, 128, 4), patch=2
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
