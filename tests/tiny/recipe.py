"""A run of seconds over all four modalities, on files that tests make (tests/conftest.py,
`tiny_data`).
"""

from dataclasses import replace

from mmtok.data.tasks import InputMasking, Task
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ImageFolder
from mmtok.sources.jets import JetFile
from mmtok.sources.speech import SpeechFolder
from mmtok.tokenizers.griffin_lim import GriffinLimConfig
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="tiny",
    sources=(
        ImageFolder("images", heldout_share=0.3),
        SpeechFolder("sounds"),
        JetFile("jets.npz", "labels.txt", heldout_share=0.5),
    ),
    tokenizers={
        "text": BytesConfig(),
        # whose sound comes soon after its frames, so that clips of a few frames are streamed
        "speech": replace(DMelConfig.dmel_40hz(), vocoder=GriffinLimConfig()),
        "image": PixelsConfig(4, 4, 1, n_levels=4),
        "jets": JetGridConfig(),
    },
    tasks=(
        Task(("caption",), ("image",), cond_dropout=0.2, infill=0.3),
        Task(("image",), ("caption",)),
        Task(("caption",), ("speech",)),
        Task(("speech",), ("caption",)),
        Task(("caption",), ("jets",), cond_dropout=0.2),
    ),
    input_masking={"image": InputMasking(drop_prob=0.1)},
    model=DecoderConfig(
        trunk=TransformerConfig(depth=1, width=32, n_heads=2, n_kv_heads=2, feed_forward=48),
        heads={"speech": Parallel(), "jets": Chained(16)},
    ),
    train=TrainConfig(
        steps=24,
        batch_size=4,
        seq_len=64,
        learning_rate=1e-2,
        warmup=4,
        checkpoint_every=10,
        log_every=8,
    ),
    sampling={
        "text": Sampling(temperature=0.0, max_frames=8),
        "speech": Sampling(max_frames=12),
        "jets": Sampling(max_frames=9),
    },
    n_samples=6,
)
