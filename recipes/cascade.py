"""Pictures of 28 x 28 pixels from their class, drawn as 7 x 7, then 14 x 14, then 28 x 28.

    mmtok train recipes/cascade.py --path FOLDER

FOLDER holds a folder of pictures for each class; the folders' names are the captions. MNIST's own
four files are read by another source:

    mmtok train recipes/cascade.py --sources '[{"kind": "IdxImages", "path": "FOLDER", "names":
        ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
        "ankle boot"]}]'

Less than an hour on one core. `scripts/bench_fashion.py` trains nearly the same run and measures
its samples.

    mmtok sample runs/cascade --prompt "ankle boot" --to image
    mmtok sample runs/cascade --prompt "ankle boot" --to image --guidance 2
"""

from mmtok.data.tasks import Task
from mmtok.heads.cascade import Cascade, Stage
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.unet import UNetConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ImageFolder
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

# What the tokenizer takes; pictures are prepared to be of this size.
SIZE = {"height": 28, "width": 28, "channels": 1}
# Few frames: the decoder reads them, but what it draws depends on the class alone.
PATCH = 14

recipe = Recipe(
    name="cascade",
    sources=(ImageFolder(path=""),),
    tokenizers={
        "text": BytesConfig(),
        "image": PixelLatentsConfig(**SIZE, n_levels=256, patch=PATCH),
    },
    tasks=(Task(("caption",), ("image",), cond_dropout=0.1),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=2, width=128, n_heads=4, n_kv_heads=4, feed_forward=256),
        heads={
            "image": Cascade(
                stages=(
                    Stage(network=UNetConfig((64, 64), blocks=1)),
                    Stage(network=UNetConfig((32, 64), blocks=1), aug_noise=0.2),
                    Stage(network=UNetConfig((16, 32, 64), blocks=1), aug_noise=0.2),
                ),
                patch=PATCH,
            )
        },
    ),
    # some 32 pictures per step
    train=TrainConfig(
        steps=4000, batch_size=4, seq_len=160, learning_rate=2e-3, warmup=100, ema_decay=0.995
    ),
    sampling={"image": Sampling(guidance=1.5)},
)
