"""Vectors of one size for text, speech, pictures and jets: the quickstart's data, contrasted.

No task: the decoder learns nothing but to tell signals apart. Tasks beside contrasts share it.
"""

from mmtok.data.tasks import Contrast, InputMasking
from mmtok.model.embedder import EmbeddingConfig
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.images import ScannedDigits
from mmtok.sources.pythia import PythiaJets
from mmtok.sources.speech import SpokenDigits
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="embed",
    sources=(ScannedDigits(), SpokenDigits(n_utterances=6000), PythiaJets()),
    tokenizers={
        "text": BytesConfig(),
        "speech": DMelConfig.dmel_40hz(),
        "image": VQPatchesConfig(),
        "jets": JetGridConfig(totals=("pt_gev", "mass_gev")),
    },
    tasks=(),
    # a caption is what joins pictures and clips: those of one name are alike
    contrasts=(
        # where a code stands in a picture is the last thing learned
        Contrast(("caption", "image"), weight=0.55),
        Contrast(("caption", "speech"), weight=0.3),
        Contrast(("caption", "jets"), weight=0.15),
    ),
    input_masking={
        "image": InputMasking(drop_prob=0.1),
        "speech": InputMasking(n_freq_masks=1, freq_mask_width=16),
    },
    model=DecoderConfig(
        trunk=TransformerConfig(
            depth=4, width=128, n_heads=4, n_kv_heads=4, feed_forward=352, dropout=0.1
        ),
        totals={"jets": 64},
        # after 250 steps of the same data siglip was behind
        embedding=EmbeddingConfig(size=128, loss="clip", bidirectional=True),
    ),
    train=TrainConfig(
        steps=800,
        batch_size=8,
        seq_len=256,
        optimizer="muon",
        learning_rate=2e-3,
        warmup=50,
        log_every=50,
    ),
)
