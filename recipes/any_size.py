"""Pictures of any size from their names, and names from pictures of any size.

A picture keeps its size and its proportions, up to max_pixels. It is read and drawn as rows of
codes, each closed by a row mark; how wide and how high a drawn picture is, the model decides.

    mmtok train recipes/any_size.py --path FOLDER
    mmtok sample runs/any_size --prompt "red fox" --to image
    mmtok sample runs/any_size --prompt photo.png --to text
"""

from mmtok.data.image_preparation import ImagePreparation
from mmtok.data.tasks import InputMasking, Task
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ImageFolder
from mmtok.tokenizers.any_size import AnySizePatchesConfig
from mmtok.tokenizers.autoencoders import StagedConv
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="any_size",
    sources=(ImageFolder(path=""),),
    # 12 x 12 patches, 3 x 48 or what is between: 150 to 200 codes with the row marks
    preparation={"image": ImagePreparation(max_pixels=48 * 48)},
    tokenizers={
        "text": BytesConfig(),
        "image": AnySizePatchesConfig(
            height=32,  # of the tiles that it learns from
            width=32,
            channels=3,
            patch=4,
            quantizer=VQ(n_codes=512, rotation=True),
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
    train=TrainConfig(steps=10_000, batch_size=16, seq_len=320, learning_rate=1e-3, warmup=200),
    sampling={
        "image": Sampling(guidance=1.5, max_frames=300),
        "text": Sampling(temperature=0.0, max_frames=64),
    },
)
