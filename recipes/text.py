"""A language model of one text.

The text is cut into chunks, which are the documents.

    mmtok train recipes/text.py --path my.txt
    mmtok sample runs/text --to text                              # new text
    mmtok sample runs/text --to text --prompt "Once upon a time"  # continues a beginning
    mmtok score runs/text other.txt                               # bits per byte of each chunk
"""

from mmtok.data.tasks import Task
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.text import TextFile
from mmtok.tokenizers.text import SentencePieceConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="text",
    sources=(TextFile(path="", chunk_chars=512),),
    tokenizers={"text": SentencePieceConfig(n_pieces=2048)},
    tasks=(Task((), ("text",)),),
    model=DecoderConfig(trunk=TransformerConfig.from_depth(4, dropout=0.1)),
    # a row must hold the longest chunk: one position per byte, where no piece fits
    train=TrainConfig(steps=2000, batch_size=8, seq_len=1024, learning_rate=1e-3),
    sampling={"text": Sampling(temperature=0.9, max_frames=256)},
)
