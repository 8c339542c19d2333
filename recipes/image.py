"""Pictures from their names, and names from pictures.

A picture is named by its sub-folder, or by its own file name where there are no sub-folders.

    mmtok train recipes/image.py --path FOLDER
    mmtok sample runs/image --prompt "red fox" --to image
    mmtok sample runs/image --prompt photo.png --to text
"""

from mmtok.data.tasks import InputMasking, Task
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ImageFolder
from mmtok.tokenizers.autoencoders import StagedConv
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

# What the tokenizer takes; pictures are prepared to be of this size.
SIZE = {"height": 32, "width": 32, "channels": 3}

recipe = Recipe(
    name="image",
    sources=(ImageFolder(path=""),),
    tokenizers={
        "text": BytesConfig(),
        "image": VQPatchesConfig(
            **SIZE,
            patch=4,
            quantizer=VQ(n_codes=512, rotation=True),
            # 2 dB and more above convolutions of pixels after as much time of a processor
            autoencoder=StagedConv(width=64),
            steps=8000,
        ),
    },
    tasks=(
        Task(("caption",), ("image",), weight=0.8, cond_dropout=0.1),
        Task(("image",), ("caption",), weight=0.2),
    ),
    # without it, samples become copies of training pictures
    input_masking={"image": InputMasking(drop_prob=0.2)},
    model=DecoderConfig(trunk=TransformerConfig.from_depth(6, dropout=0.1)),
    train=TrainConfig(steps=10_000, batch_size=16, seq_len=256, learning_rate=1e-3, warmup=200),
    sampling={"image": Sampling(guidance=1.5), "text": Sampling(temperature=0.0, max_frames=64)},
)
