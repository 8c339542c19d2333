r"""Speech as a continuous spectrogram, each frame drawn by a small diffusion.

Synthesis and recognition without a codebook. The head is MAR's (Li et al. 2024, arXiv 2406.11838);
the frames are dMel's before their values are rounded. By default spoken digits, made by espeak-ng.

    mmtok train recipes/continuous_speech.py
    mmtok sample runs/continuous_speech --prompt "three one four" --to speech
    mmtok sample runs/continuous_speech --to text \
        --prompt runs/continuous_speech/samples/asked/three-one-four-000.wav

A folder of sound files with transcripts:

    mmtok train recipes/continuous_speech.py \
        --sources '[{"kind": "SpeechFolder", "path": "FOLDER"}]' --seq_len 1024
"""

from mmtok.data.tasks import InputMasking, Task
from mmtok.diffusion.schedules import CondOT
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.speech import SpokenDigits
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="continuous_speech",
    sources=(SpokenDigits(),),
    tokenizers={"text": BytesConfig(), "speech": LogMelConfig.dmel_40hz()},
    tasks=(
        Task(("caption",), ("speech",), weight=0.5, cond_dropout=0.1),
        Task(("speech",), ("caption",), weight=0.5),
    ),
    # without it, the frames just read say too much
    input_masking={"speech": InputMasking(span_prob=0.3, span_length=3, apply_prob=0.5)},
    model=DecoderConfig(
        trunk=TransformerConfig(
            depth=4, width=192, n_heads=4, n_kv_heads=4, feed_forward=512, dropout=0.1
        ),
        # Bands have variance 1, so flow matching needs no constants. Two noise levels per frame are
        # enough, as a clip has many frames.
        heads={
            "speech": FrameDiffusion(
                schedule=CondOT(), network=TokenMLPConfig(depth=3, width=256), draws=2, steps=18
            )
        },
    ),
    train=TrainConfig(
        steps=3000, batch_size=8, seq_len=256, learning_rate=1.5e-3, warmup=100, log_every=50
    ),
    sampling={
        "speech": Sampling(temperature=0.9, max_frames=240),
        "text": Sampling(temperature=0.0, max_frames=64),
    },
)
