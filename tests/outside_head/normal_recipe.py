"""Pictures as latents, drawn by a head that the package does not know."""

from normal_head import Normal

from mmtok.data.tasks import Task
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ImageFolder
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="normal",
    sources=(ImageFolder("images", heldout_share=0.3),),
    tokenizers={"text": BytesConfig(), "image": PixelLatentsConfig(4, 4, 1, n_levels=4, patch=2)},
    tasks=(Task(("caption",), ("image",), cond_dropout=0.2),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=1, width=32, n_heads=2, n_kv_heads=2, feed_forward=64),
        heads={"image": Normal()},
    ),
    train=TrainConfig(
        steps=80,
        batch_size=4,
        seq_len=64,
        learning_rate=1e-2,
        warmup=4,
        ema_decay=0.0,
        precision="float32",
    ),
    n_samples=4,
)
