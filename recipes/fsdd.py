"""Digits of real speakers: synthesis in a named voice, and recognition.

The Free Spoken Digit Dataset: the folder of its recordings, or a tar of it.

    mmtok train recipes/fsdd.py --path free-spoken-digit-dataset/recordings
    mmtok sample runs/fsdd --prompt theo --prompt seven --to speech
    mmtok sample runs/fsdd --prompt clip.wav --to caption
    python scripts/bench_fsdd.py runs/fsdd
"""

from mmtok.data.tasks import InputMasking, Task
from mmtok.heads.categorical import Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.fsdd import FSDD
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

# Of what is spoken itself, spans of 0.25 s: the frames just read say so much of the next ones that
# the text would hardly be looked at.
WORDS_HIDDEN = InputMasking(span_prob=0.5, span_length=10, apply_prob=0.8)

recipe = Recipe(
    name="fsdd",
    sources=(FSDD(),),
    tokenizers={"text": BytesConfig(), "speech": DMelConfig.dmel_40hz()},
    tasks=(
        # recognition is learned first: most positions are for synthesis
        Task(
            ("speaker", "caption"),
            ("speech",),
            weight=0.7,
            cond_dropout=0.1,
            target_masking=WORDS_HIDDEN,
        ),
        Task(("speech",), ("caption",), weight=0.3),
    ),
    # of what recognition reads: dMel's setting (section 3.3.1), and one band of frequencies
    input_masking={
        "speech": InputMasking(
            span_prob=0.3, span_length=3, apply_prob=0.5, n_freq_masks=1, freq_mask_width=16
        )
    },
    model=DecoderConfig(
        trunk=TransformerConfig(
            depth=4, width=192, n_heads=3, n_kv_heads=3, feed_forward=512, dropout=0.1
        ),
        heads={"speech": Parallel()},
    ),
    # 256 positions: some 6 s
    train=TrainConfig(
        steps=2200,
        batch_size=8,
        seq_len=256,
        optimizer="muon",
        learning_rate=2e-3,
        warmup=100,
        # a frame has 80 channels, a letter one
        loss_weights={"text": 5.0},
        log_every=50,
    ),
    sampling={
        "speech": Sampling(temperature=0.8, guidance=1.5, max_frames=90),
        "text": Sampling(temperature=0.0, max_frames=40),
    },
)
