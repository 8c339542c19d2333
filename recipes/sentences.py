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
from mmtok.tokenizers.text import SentencePieceConfig
from mmtok.tokenizers.voices import VoiceConfig
from mmtok.train.config import TrainConfig

# Of what is spoken itself, spans of 0.25 s: the frames just read say so much of the next ones that
# the text would hardly be looked at.
WORDS_HIDDEN = InputMasking(
    span_prob=0.5, span_length=5, apply_prob=0.8, n_freq_masks=1, freq_mask_width=32
)

recipe = Recipe(
    name="sentences",
    sources=(SpokenSentences(),),
    tokenizers={
        # a word of the grammar is one piece: every piece that a recogniser writes must be heard,
        # while most letters follow from those before them, and are learned from those alone
        "text": SentencePieceConfig(n_pieces=1400, model="bpe"),
        # two frames of the spectrogram in one of the stream: half the positions
        "speech": replace(DMelConfig.dmel_40hz(), reduction_factor=2),
        "voice": VoiceConfig(),
    },
    preparation={"text": TextPreparation(spoken_form="en")},
    # recognition is learned first, and quickly: most positions are for synthesis
    tasks=(
        Task(("speech",), ("caption",), weight=0.3),
        Task(
            ("voice", "caption"),
            ("speech",),
            weight=0.5,
            cond_dropout=0.1,
            target_masking=WORDS_HIDDEN,
        ),
        Task(("caption",), ("speech",), weight=0.2, cond_dropout=0.1, target_masking=WORDS_HIDDEN),
    ),
    # of what recognition reads: dMel's setting of RichASR (section 3.3.1)
    input_masking={
        "speech": InputMasking(
            span_prob=0.4, span_length=2, apply_prob=0.6, n_freq_masks=1, freq_mask_width=32
        )
    },
    model=DecoderConfig(
        trunk=TransformerConfig(depth=4, width=256, n_heads=4, n_kv_heads=4, feed_forward=704),
        heads={"speech": Parallel()},
    ),
    train=TrainConfig(
        steps=7000,
        batch_size=12,
        seq_len=168,
        optimizer="muon",
        learning_rate=2e-3,
        warmup=100,
        # a frame has 160 channels, a piece one: without it reading is learned late
        loss_weights={"text": 10.0},
        log_every=50,
    ),
    sampling={
        "text": Sampling(temperature=0.0, max_frames=32),
        "speech": Sampling(temperature=0.5, guidance=1.5, max_frames=120),
    },
)
