"""The tiny recipe's pictures only, drawn by diffusion: `recipe` as pixels on an axis, and variants
with other heads.
"""

from dataclasses import replace

from mmtok.data.tasks import Task
from mmtok.diffusion.schedules import EDM
from mmtok.heads.cascade import Cascade, Stage
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig, TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.unet import UNetConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ImageFolder
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.image_latents import KLPatchesConfig, PixelLatentsConfig
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

DIT = DiTConfig(1, 16, 2)
UNET = UNetConfig((8, 8), 1, 2)
TRUNK = TransformerConfig(depth=1, width=16, n_heads=2, n_kv_heads=2, feed_forward=24)
SCHEDULE = EDM(sigma_max=8.0)

recipe = Recipe(
    name="pixels",
    sources=(ImageFolder("images", heldout_share=0.3),),
    tokenizers={"text": BytesConfig(), "image": PixelLatentsConfig(4, 4, 1, n_levels=4, patch=2)},
    tasks=(Task(("caption",), ("image",)), Task(("image",), ("caption",))),
    model=DecoderConfig(
        trunk=TRUNK,
        heads={"image": GridDiffusion(SCHEDULE, network=DIT, patch=2, steps=12, ode_steps=4)},
    ),
    train=TrainConfig(
        steps=12,
        batch_size=4,
        seq_len=64,
        learning_rate=1e-2,
        warmup=4,
        checkpoint_every=10,
        log_every=4,
    ),
    n_samples=6,
)


def variant(name, head, **more):
    """The same with another head for pictures."""
    return replace(recipe, name=name, model=replace(recipe.model, heads={"image": head}), **more)


KL = {
    "text": BytesConfig(),
    "image": KLPatchesConfig(
        4, 4, 1, patch=2, latent_size=3, autoencoder=ConvPatches(8, 0), steps=4
    ),
}
CODES = {"text": BytesConfig(), "image": PixelsConfig(4, 4, 1, n_levels=4)}
VARIANTS = {
    x.name: x
    for x in (
        recipe,
        variant(
            "cascade",
            Cascade(
                tuple(Stage(SCHEDULE, network=UNET, steps=steps, ode_steps=4) for steps in (3, 2)),
                patch=2,
            ),
        ),
        variant(
            "frames",
            FrameDiffusion(SCHEDULE, network=TokenMLPConfig(1, 16), steps=4, ode_steps=4),
            tokenizers=KL,
        ),
        variant(
            "codes",
            MaskedDiffusion(DIT, bound_draws=4),
            tokenizers=CODES,
            tasks=(replace(recipe.tasks[0], cond_dropout=0.2), recipe.tasks[1]),
        ),
    )
}
