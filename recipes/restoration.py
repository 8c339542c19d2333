r"""Pictures restored: draws of what was there before a loss of resolution, a blur, noise or a hole.

The decoder reads the degraded picture, then draws the picture patch by patch: each patch of pixels
by a small diffusion, given all of the degraded picture and the patches before it. So draws differ
where the degraded picture leaves open what was there, and nothing is lost in a codebook. By default
handwritten digits of a fourth of their resolution.

    mmtok train recipes/restoration.py
    mmtok sample runs/restoration --prompt small.png --to image -n 16
    mmtok evaluate runs/restoration

Other degradations, and a folder of pictures:

    mmtok train recipes/restoration.py --degradations '[{"kind": "Blur", "sigma": 2}]'
    mmtok train recipes/restoration.py --degradations '[{"kind": "Noise"}]' --sources.0.copies 4
    mmtok train recipes/restoration.py --degradations '[{"kind": "Hole"}]' --sources.0.copies 4
    mmtok train recipes/restoration.py \
        --sources.0.source '{"kind": "ImageFolder", "path": "FOLDER"}' \
        --tokenizers.image '{"kind": "PixelLatentsConfig", "height": 32, "width": 32,
            "channels": 3, "n_levels": 256, "patch": 4}'
"""

from mmtok.data.tasks import InputMasking, Task
from mmtok.diffusion.schedules import CondOT
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.degraded import Degraded, Downsample
from mmtok.sources.handwritten import HandwrittenDigits
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="restoration",
    # noise and shifts of the pictures themselves would be drawn, too
    sources=(
        Degraded(HandwrittenDigits(copies=1, noise=0.0, shift=0), degradations=(Downsample(4),)),
    ),
    tokenizers={"image": PixelLatentsConfig(28, 28, 1, n_levels=256, patch=4)},
    tasks=(Task(("degraded",), ("image",)),),
    # the patches just drawn must not say more than the degraded picture
    input_masking={"image": InputMasking(drop_prob=0.2)},
    model=DecoderConfig(
        trunk=TransformerConfig(
            depth=4, width=128, n_heads=4, n_kv_heads=4, feed_forward=352, dropout=0.1
        ),
        heads={
            "image": FrameDiffusion(
                schedule=CondOT(), network=TokenMLPConfig(depth=3, width=128), draws=4, steps=18
            )
        },
    ),
    train=TrainConfig(
        steps=2000,
        batch_size=8,
        seq_len=256,
        learning_rate=1.5e-3,
        warmup=100,
        ema_decay=0.995,
        log_every=50,
    ),
)
