"""Synthesis and recognition from a folder of sound files with transcripts.

A transcript is NAME.txt next to NAME.wav, or a line of transcripts.csv (columns file and text).

    mmtok train recipes/speech.py --path FOLDER
    mmtok sample runs/speech --prompt "good morning" --to speech
    mmtok sample runs/speech --prompt clip.wav --to text
"""

from mmtok.data.tasks import InputMasking, Task
from mmtok.heads.categorical import Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.speech import SpeechFolder
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="speech",
    sources=(SpeechFolder(path=""),),
    tokenizers={"text": BytesConfig(), "speech": DMelConfig.dmel_40hz()},
    tasks=(
        Task(("caption",), ("speech",), weight=0.5, cond_dropout=0.1),
        Task(("speech",), ("caption",), weight=0.5),
    ),
    # without it, the frames just read say too much
    input_masking={
        "speech": InputMasking(
            span_prob=0.3, span_length=3, apply_prob=0.5, n_freq_masks=1, freq_mask_width=16
        )
    },
    model=DecoderConfig(
        trunk=TransformerConfig.from_depth(6, dropout=0.1), heads={"speech": Parallel()}
    ),
    # 1024 positions: some 20 s
    train=TrainConfig(steps=10_000, batch_size=8, seq_len=1024, learning_rate=1e-3, warmup=200),
    sampling={
        "speech": Sampling(temperature=0.8, max_frames=800),
        "text": Sampling(temperature=0.0, max_frames=512),
    },
)
