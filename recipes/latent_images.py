r"""Pictures as continuous patches, each drawn by a small diffusion; and names from pictures.

MAR (Li et al. 2024, arXiv 2406.11838) with patches row by row and no codebook: the decoder's state
before a patch conditions a residual MLP that denoises it. By default scikit-learn's digits.

    mmtok train recipes/latent_images.py
    mmtok sample runs/latent_images --prompt seven --to image --guidance 2
    mmtok sample runs/latent_images --to text \
        --prompt runs/latent_images/samples/asked/seven-000.png

A folder of pictures:

    mmtok train recipes/latent_images.py \
        --sources '[{"kind": "ImageFolder", "path": "FOLDER"}]' \
        --tokenizers.image '{"kind": "KLPatchesConfig", "height": 32, "width": 32, "channels": 3,
            "patch": 4, "latent_size": 8, "steps": 4000}'
"""

from mmtok.data.tasks import InputMasking, Task
from mmtok.diffusion.schedules import CondOT
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ScannedDigits
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="latent_images",
    sources=(ScannedDigits(),),
    # fewer latents than pixels, and a KL term that stands for errors of 9 grey values: what the
    # scans' copies are blurred by anyway
    tokenizers={"text": BytesConfig(), "image": KLPatchesConfig(latent_size=3, kl_weight=1e-2)},
    tasks=(
        # guidance needs documents trained without their condition
        Task(("caption",), ("image",), weight=0.7, cond_dropout=0.1),
        Task(("image",), ("caption",), weight=0.3),
    ),
    # as MAR hides patches: the frames just read must not say too much
    input_masking={"image": InputMasking(drop_prob=0.3)},
    model=DecoderConfig(
        trunk=TransformerConfig(
            depth=4, width=128, n_heads=4, n_kv_heads=4, feed_forward=352, dropout=0.1
        ),
        # latents have variance 1, so flow matching needs no constants; four noise levels per frame
        # make the most of a state
        heads={
            "image": FrameDiffusion(
                schedule=CondOT(), network=TokenMLPConfig(depth=3, width=128), draws=4, steps=18
            )
        },
    ),
    train=TrainConfig(
        steps=3000, batch_size=8, seq_len=256, learning_rate=1.5e-3, warmup=100, log_every=50
    ),
    sampling={
        "image": Sampling(guidance=1.5),
        "text": Sampling(temperature=0.0, max_frames=64),  # reading wants the likeliest string
    },
)
