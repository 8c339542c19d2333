"""Synthesis and recognition of spoken sentences, in any voice of which there is a clip.

mmtok train recipes/sentences.py
mmtok sample runs/sentences --prompt "Anna found 3 keys." --to speech
mmtok sample runs/sentences --prompt "Anna found 3 keys." --voice clip.wav --to speech
mmtok sample runs/sentences --prompt clip.wav --to text
"""

from dataclasses import replace

from mmtok.data.tasks import InputMasking, Task
from mmtok.data.text_preparation import TextPreparation
from mmtok.heads.categorical import Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.sentences import SpokenSentences
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.tokenizers.voices import VoiceConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="sentences",
    sources=(SpokenSentences(),),
    tokenizers={
        "text": BytesConfig(),
        # two frames of the spectrogram in one of the stream: half the positions
        "speech": replace(DMelConfig.dmel_40hz(), reduction_factor=2),
        "voice": VoiceConfig(),
    },
    preparation={"text": TextPreparation(spoken_form="en")},
    tasks=(
        Task(("speech",), ("caption",), weight=0.5),
        Task(("voice", "caption"), ("speech",), weight=0.35, cond_dropout=0.1),
        Task(("caption",), ("speech",), weight=0.15),
    ),
    # dMel's setting of RichASR (section 3.3.1): without it, the frames just read say too much
    input_masking={
        "speech": InputMasking(
            span_prob=0.4, span_length=2, apply_prob=0.6, n_freq_masks=1, freq_mask_width=32
        )
    },
    model=DecoderConfig(
        trunk=TransformerConfig(
            depth=6, width=256, n_heads=4, n_kv_heads=4, feed_forward=704, dropout=0.1
        ),
        heads={"speech": Parallel()},
    ),
    train=TrainConfig(
        steps=3000,
        batch_size=12,
        seq_len=168,
        optimizer="muon",
        learning_rate=2e-3,
        warmup=100,
        # a frame has 80 channels, a letter one: without it reading is learned late
        loss_weights={"text": 3.0},
        log_every=50,
    ),
    sampling={
        "text": Sampling(temperature=0.0, max_frames=96),
        "speech": Sampling(temperature=0.7, max_frames=120),
    },
)
