r"""Pictures as codes in any order: masked diffusion over the codes of the decoder.

Sahoo et al. 2024 (arXiv 2406.07524). All codes start masked and are filled in one at a time, or
several in a step, which is faster and less exact (Sampling.steps). Known codes are kept and read,
so parts of a picture can be drawn anew. By default scikit-learn's digits.

    mmtok train recipes/any_order.py
    mmtok sample runs/any_order --prompt seven --to image -n 16

In blocks of eight codes, a row of the picture, each given those before it (Arriola et al. 2025,
arXiv 2503.09573): between this and autoregression, in what it knows and in time.

    mmtok train recipes/any_order.py --model.heads.image.block 8 --name rows

Pixels instead of learned codes, and a folder of pictures:

    mmtok train recipes/any_order.py \
        --tokenizers.image '{"kind": "PixelsConfig", "height": 8, "width": 8, "channels": 1}'
    mmtok train recipes/any_order.py \
        --sources '[{"kind": "ImageFolder", "path": "FOLDER"}]' \
        --tokenizers.image '{"kind": "VQPatchesConfig", "height": 32, "width": 32, "channels": 3,
            "patch": 4, "quantizer": {"kind": "VQ", "n_codes": 512}, "steps": 4000}'
"""

from mmtok.data.tasks import Task
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ScannedDigits
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="any_order",
    sources=(ScannedDigits(),),
    tokenizers={"text": BytesConfig(), "image": VQPatchesConfig()},
    # guidance needs documents trained without their condition
    tasks=(Task(("caption",), ("image",), cond_dropout=0.1),),
    model=DecoderConfig(
        # the trunk only reads the name; the head draws
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=176),
        heads={"image": MaskedDiffusion(network=DiTConfig(4, 96, 4))},
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
    sampling={"image": Sampling(temperature=0.9)},
)
