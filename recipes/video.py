"""Videos as pictures in time: digits that move over a canvas, from their names or first pictures.

A picture's patches are learned codes, and each picture is a row of them. Training takes some four
minutes of a processor. Needs the extra `demo`.

    mmtok train recipes/video.py
    mmtok sample runs/video --prompt seven --to video
    mmtok sample runs/video --prompt begin.gif --to video
    mmtok evaluate runs/video

Your own videos: `sources=(VideoFolder(path=""),)`, and sizes in `picture`.
"""

from mmtok.data.tasks import Task
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.videos import MovingDigits
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.text import BytesConfig
from mmtok.tokenizers.video import VideoConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="video",
    sources=(MovingDigits(),),
    tokenizers={
        "text": BytesConfig(),
        "video": VideoConfig(
            VQPatchesConfig(height=20, width=20, patch=4, quantizer=VQ(n_codes=512), steps=600)
        ),
    },
    tasks=(Task(("caption",), ("video",), cond_dropout=0.3),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=3, width=128, n_heads=4, n_kv_heads=4, feed_forward=384)
    ),
    train=TrainConfig(
        steps=1500, batch_size=8, seq_len=224, optimizer="muon", learning_rate=2e-3, warmup=50
    ),
    n_samples=100,
    # eight pictures of 25 codes and a mark, and the end mark
    sampling={"video": Sampling(temperature=0.7, max_frames=220), "text": Sampling()},
)
