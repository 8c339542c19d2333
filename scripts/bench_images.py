"""Learned image tokenizers beside the example of vector-quantize-pytorch, in equal CPU seconds.

    python scripts/bench_images.py FOLDER                         natural: a folder of pictures
    python scripts/bench_images.py FOLDER --fashion MNIST_FOLDER  and Fashion-MNIST's four files
    python scripts/bench_images.py FOLDER --seconds 60 --seeds 0 1 2

natural: pictures are scaled to several sizes and cut into tiles of 32 x 32 in colours; every eighth
picture is held out whole. 4 x 4 patches, 512 codes. Our training takes as many steps as a short
probe says fit the seconds; the example of the library (github.com/lucidrains, batches of 256,
AdamW at 3e-4, L1 and 10 times the commitment loss) trains for the CPU seconds that ours took.

perceptual (extra `pictures`): the same training with and without the perceptual term, in equal CPU
seconds, by the Fréchet distance of features of held-out tiles and their copies.

fashion: 28 x 28 to 7 x 7 codes of 256, 1,000 steps each, by VQ and by FSQ.

speed (no FOLDER): pictures encoded and decoded in a CPU second, beside the library's quantizer in
our own networks and beside its example; and 64 samples of 7 x 7 codes.

CPU seconds are those of `resource`, on one thread.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import t as student
from side_by_side import called
from timed import verdict
from torch import Tensor, nn

from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.metrics.images import frechet, psnr_db
from mmtok.model.generate import generate
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.quantize import book_use, code_counts
from mmtok.nn.transformer import TransformerConfig
from mmtok.sources.idx import IdxImages
from mmtok.sources.image_files import open_image
from mmtok.tokenizers.autoencoders import StagedConv
from mmtok.tokenizers.image_losses import ImageLosses
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.patches import from_tensor, to_tensor
from mmtok.tokenizers.quantizers import FSQ, VQ
from mmtok.train.tokenizer_fit import fit_tokenizer

SIDE = 32
SCALES = (32, 64, 96, 160)  # of the shorter side, before tiles are cut
FLAT = 15.0  # tiles whose standard deviation is below are left out: plain backgrounds
HELD_OUT = 8  # every so many-th picture
NATURAL = VQPatchesConfig(
    SIDE, SIDE, 3, patch=4, quantizer=VQ(512, rotation=True), autoencoder=StagedConv()
)
FASHION = VQPatchesConfig(
    28, 28, 1, patch=4, quantizer=VQ(256, rotation=True), autoencoder=StagedConv(), steps=1000
)
PROBE_STEPS = 12
CHOICES = ("natural", "perceptual", "fashion", "speed")
REPEATS = 9
N_TIMED = 256  # pictures
SUFFIXES = (".png", ".jpg", ".jpeg")


def cpu_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ---- pictures


def tiles_of(path: Path) -> list[np.ndarray]:
    """A picture's tiles (SIDE, SIDE, 3), over white."""
    picture = Image.fromarray(np.asarray(open_image(path).pixels)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    colours = Image.alpha_composite(ground, picture).convert("RGB")
    found = []
    for side in SCALES:
        scale = side / min(colours.size)
        if scale > 1:
            continue
        size = [max(side, round(scale * n)) for n in colours.size]
        pixels = np.asarray(colours.resize((size[0], size[1]), Image.Resampling.BICUBIC))
        for y in range(0, pixels.shape[0] - SIDE + 1, SIDE):
            for x in range(0, pixels.shape[1] - SIDE + 1, SIDE):
                found.append(pixels[y : y + SIDE, x : x + SIDE])
    return [tile for tile in found if tile.std() >= FLAT]


def natural_tiles(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tiles to learn from, and those of the pictures that are held out."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(paths) < HELD_OUT:
        raise UserError(f"{folder} has {len(paths)} pictures; give at least {HELD_OUT}")
    train: list[np.ndarray] = []
    heldout: list[np.ndarray] = []
    for i, path in enumerate(paths):
        part = heldout if i % HELD_OUT == 0 else train
        part += tiles_of(path)
    return train, heldout


# ---- the library's example


class Example(nn.Module):
    """The small autoencoder of the library's examples, for C channels."""

    def __init__(self, channels: int, quantizer: nn.Module, size: int = 32):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.GELU(),
            nn.Conv2d(16, size, 3, padding=1),
            nn.MaxPool2d(2),
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(size, 16, 3, padding=1),
            nn.GELU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(16, channels, 3, padding=1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, Y, X) -> (copies, codes, commitment loss)."""
        z = self.encoder(images)
        flat = z.permute(0, 2, 3, 1).flatten(1, 2)
        found = self.quantizer(flat)
        loss = found[2].sum() if len(found) > 2 else z.new_zeros(())
        vectors = found[0].transpose(1, 2).unflatten(2, z.shape[2:])
        return self.decoder(vectors), found[1], loss


def train_example(network: Example, images: Tensor, is_done: Callable[[int], bool]) -> None:
    """As the library's examples do, until `is_done` says so of the steps taken."""
    optimizer = torch.optim.AdamW(network.parameters(), 3e-4)
    n = 0
    while not is_done(n):
        batch = images[torch.randint(len(images), (256,))]
        made, _, loss = network(batch)
        error = F.l1_loss(made.clamp(-1, 1), batch) + 10 * loss
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        n += 1


@torch.no_grad()
def example_figures(network: Example, images: Tensor, n_codes: int) -> dict[str, float]:
    """Of the copies of held-out images."""
    network.eval()
    copies: list[np.ndarray] = []
    codes = []
    start = time.perf_counter()
    for part in images.split(256):
        made, found, _ = network(part)
        copies += from_tensor(made)
        codes.append(found.flatten())
    seconds = time.perf_counter() - start
    figures = error_figures(from_tensor(images), copies)
    use = book_use(code_counts(torch.cat(codes), n_codes))
    return figures | {"use": use, "images/s": len(images) / seconds}


# ---- figures


def error_figures(images: Sequence[np.ndarray], copies: Sequence[np.ndarray]) -> dict[str, float]:
    """PSNR, and the mean absolute error of values in -1..1."""
    errors = [
        np.abs(np.subtract(a, b, dtype=np.float64)) for a, b in zip(images, copies, strict=True)
    ]
    return {"psnr_db": psnr_db(images, copies), "L1": float(np.mean(errors) / 127.5)}


def our_figures(tokenizer: Any, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Of the copies of held-out images."""
    start = time.perf_counter()
    segments = tokenizer.encode_batch(images)
    copies = tokenizer.decode_batch(segments)
    seconds = time.perf_counter() - start
    codes = torch.from_numpy(np.concatenate([segment.codes for segment in segments]))
    use = book_use(code_counts(codes, tokenizer.signature.levels[0]))
    return error_figures(images, copies) | {"use": use, "images/s": len(images) / seconds}


def steps_within(config: Any, images: Sequence[np.ndarray], seconds: float) -> int:
    """As many steps as fit, as a probe says: the difference of two short trainings.

    The first of three pays for the first touch of memory, and does not count.
    """
    spent = []
    for steps in (PROBE_STEPS, PROBE_STEPS, 3 * PROBE_STEPS):
        start = cpu_seconds()
        fit_tokenizer(replace(config, steps=steps), images, heldout=images[:8])
        spent.append(cpu_seconds() - start)
    pace = (spent[2] - spent[1]) / (2 * PROBE_STEPS)
    begin = max(0.0, spent[1] - PROBE_STEPS * pace)
    return max(1, round((seconds - begin) / pace))


def line(name: str, figures: dict[str, float]) -> None:
    """A row of the table."""
    print(
        f"| {name} | " + " | ".join(f"{k} {v:.4g}" for k, v in figures.items()) + " |", flush=True
    )


def natural(folder: Path, seconds: float, seeds: Sequence[int]) -> None:
    """Ours beside the library's example, in equal CPU seconds."""
    from vector_quantize_pytorch import VectorQuantize

    train, heldout = natural_tiles(folder)
    print(f"{len(train):,} tiles of {SIDE} x {SIDE}, {len(heldout):,} held out")
    steps = steps_within(NATURAL, train, seconds)
    images = to_tensor(train, NATURAL, torch.float32)
    others = to_tensor(heldout, NATURAL, torch.float32)
    for seed in seeds:
        start = cpu_seconds()
        tokenizer = fit_tokenizer(replace(NATURAL, steps=steps), train, seed, heldout=heldout[:64])
        spent = cpu_seconds() - start
        ours = our_figures(tokenizer, heldout)
        line(f"ours, seed {seed}", {"CPU s": spent, "steps": steps} | ours)
        best = 0.0
        for name, settings in (("as it is", {}), ("rotation", {"rotation_trick": True})):
            torch.manual_seed(seed)
            network = Example(3, VectorQuantize(32, 512, **settings))
            until = cpu_seconds() + spent
            train_example(network, images, lambda n, until=until: cpu_seconds() >= until)
            theirs = example_figures(network, others, 512)
            line(f"the library's example, {name}, seed {seed}", {"CPU s": spent} | theirs)
            best = max(best, theirs["psnr_db"])
        gain = ours["psnr_db"] - best
        good = gain >= 1 and ours["use"] >= 0.9
        print(f"seed {seed}: {gain:+.2f} dB (bar +1 and use 0.9): {verdict(good)}", flush=True)


def perceptual(folder: Path, seconds: float, seeds: Sequence[int]) -> None:
    """The Fréchet distance with the perceptual term over that without, in equal CPU seconds."""
    from mmtok.nn.image_features import ImageFeatures

    features = ImageFeatures()
    train, heldout = natural_tiles(folder)
    print(f"{len(train):,} tiles of {SIDE} x {SIDE}, {len(heldout):,} held out", flush=True)
    real = features.pooled(to_tensor(heldout, NATURAL, torch.float32)).numpy()
    configs = []
    for weight in (0.0, 1.0):
        config = replace(NATURAL, losses=ImageLosses(perceptual=weight))
        configs.append(replace(config, steps=steps_within(config, train, seconds)))
    ratios = []
    for seed in seeds:
        found = []
        for config in configs:
            start = cpu_seconds()
            tokenizer = fit_tokenizer(config, train, seed, heldout=heldout[:64])
            spent = cpu_seconds() - start
            copies = tokenizer.decode_batch(tokenizer.encode_batch(heldout))
            made = features.pooled(to_tensor(copies, NATURAL, torch.float32)).numpy()
            found.append(frechet(real, made))
            line(
                f"perceptual {config.losses.perceptual:g}, seed {seed}",
                {"CPU s": spent, "steps": config.steps, "Fréchet": found[-1]}
                | error_figures(heldout, copies),
            )
        ratios.append(found[1] / found[0])
        print(f"seed {seed}: {ratios[-1]:.3f}", flush=True)
    ratio, low, high = mean_ratio(ratios)
    print(f"ratio {ratio:.3f} ({low:.3f} to {high:.3f}), bar 0.8: {verdict(ratio <= 0.8)}")


def mean_ratio(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of positive ratios, and its interval of 95 % by Student's t."""
    logs = np.log(ratios)
    half = np.nan
    if len(logs) > 1:
        error = np.std(logs, ddof=1) / len(logs) ** 0.5
        half = error * student.ppf(0.975, len(logs) - 1)
    mean, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    return float(mean), float(low), float(high)


def fashion(folder: Path, seeds: Sequence[int]) -> None:
    """VQ and FSQ, beside the library's, 1,000 steps each."""
    from vector_quantize_pytorch import FSQ as LibraryFSQ
    from vector_quantize_pytorch import VectorQuantize

    source = IdxImages(str(folder))
    pictures = {
        split: [
            np.asarray(getattr(e["image"], "pixels", e["image"])) for e in source.examples(split)
        ]
        for split in ("train", "heldout")
    }
    images, others = (to_tensor(part, FASHION, torch.float32) for part in pictures.values())
    for seed in seeds:
        for name, quantizer, size, theirs in (
            ("VQ", VQ(256, rotation=True), 32, lambda: VectorQuantize(32, 256)),
            ("FSQ", FSQ((8, 6, 5)), 3, lambda: LibraryFSQ([8, 6, 5])),
        ):
            config = replace(FASHION, quantizer=quantizer)
            start = cpu_seconds()
            tokenizer = fit_tokenizer(config, pictures["train"], seed)
            spent = cpu_seconds() - start
            line(f"ours, {name}", {"CPU s": spent} | our_figures(tokenizer, pictures["heldout"]))
            torch.manual_seed(seed)
            network = Example(1, theirs(), size)
            start = cpu_seconds()
            train_example(network, images, lambda n: n >= FASHION.steps)
            spent = cpu_seconds() - start
            n_codes = config.quantizer.levels[0]
            found = example_figures(network, others, n_codes)
            line(f"the library's example, {name}", {"CPU s": spent} | found)


# ---- speed


def fastest(*works: Callable[[], Any]) -> list[float]:
    """CPU seconds of each, the least of REPEATS by turns, after one that does not count."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(1 + REPEATS):
        for work, times in zip(works, spent, strict=True):
            start = cpu_seconds()
            work()
            times.append(cpu_seconds() - start)
    return [min(times[1:]) for times in spent]


class AtEqualSize(nn.Module):
    """Our networks around the library's quantizer, in float32, all pictures at once."""

    def __init__(self, network: Any, quantizer: nn.Module):
        super().__init__()
        self.encoder = network.encoder
        self.quantizer = quantizer
        self.decoder = network.decoder

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> vectors of codes (B, T, D)."""
        return self.quantizer(self.encoder(images).flatten(1, 2))[0]

    def decode(self, vectors: Tensor) -> Tensor:
        """Vectors of codes (B, T, D) of a square of patches -> (B, C, Y, X)."""
        side = round(vectors.shape[1] ** 0.5)
        return self.decoder(vectors.unflatten(1, (side, side)))


class ExampleSteps(AtEqualSize):
    """The library's example, in the two steps."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> vectors of codes (B, T, D)."""
        return self.quantizer(self.encoder(images).permute(0, 2, 3, 1).flatten(1, 2))[0]

    def decode(self, vectors: Tensor) -> Tensor:
        """Vectors of codes (B, T, D) of a square of patches -> (B, C, Y, X)."""
        side = round(vectors.shape[1] ** 0.5)
        return self.decoder(vectors.transpose(1, 2).unflatten(2, (side, side)))


@torch.no_grad()
def speed() -> None:
    """Pictures encoded and decoded in a CPU second, by untrained networks; 64 samples of 7 x 7."""
    from vector_quantize_pytorch import VectorQuantize

    for name, config, n_codes in (("32 x 32 RGB", NATURAL, 512), ("28 x 28 grey", FASHION, 256)):
        rng = np.random.default_rng(0)
        shape = (N_TIMED, config.height, config.width, config.channels)
        images = list(rng.integers(0, 256, shape, dtype=np.uint8))
        network = config.network()
        network.codebook.vectors.normal_()
        inputs = to_tensor(images, config, torch.float32)
        quantizer = VectorQuantize(config.quantizer.size, n_codes)
        # the same vectors as ours: how long GELU takes depends on its input
        vectors = network.codebook(network.codes(inputs)).flatten(1, 2)
        example = ExampleSteps(
            Example(config.channels, nn.Identity()), VectorQuantize(32, n_codes)
        ).eval()
        sides = {
            "ours": ours_to_time(config.trained(network), images),
            "the library's quantizer in our networks": theirs_to_time(
                AtEqualSize(network, quantizer), images, config, vectors
            ),
            "the library's example": theirs_to_time(
                example, images, config, example.encode(inputs)
            ),
        }
        works = [work for pair in sides.values() for work in pair]
        rates = N_TIMED / np.array(fastest(*works)).reshape(-1, 2)
        for title, (encoded, decoded) in zip(sides, rates, strict=True):
            line(f"{name}, {title}", {"encoded/s": encoded, "decoded/s": decoded})
            encoding, decoding = rates[0] / (encoded, decoded)
            met = verdict(min(encoding, decoding) >= 1)
            print(f"ours over it: {encoding:.2f}, {decoding:.2f} (bar 1): {met}", flush=True)
    (seconds,) = fastest(sampled_grids())
    print(f"64 samples of 7 x 7 codes: {seconds:.2f} CPU s (bar 3): {verdict(seconds < 3)}")


Work = Callable[[], Any]


def ours_to_time(tokenizer: Any, images: Sequence[np.ndarray]) -> tuple[Work, Work]:
    """Encoding images, and decoding what they are encoded to."""
    segments = tokenizer.encode_batch(images)
    return (lambda: tokenizer.encode_batch(images), lambda: tokenizer.decode_batch(segments))


def theirs_to_time(
    side: AtEqualSize, images: Sequence[np.ndarray], config: Any, vectors: Tensor
) -> tuple[Work, Work]:
    """The same from and to uint8; vectors of codes (N, T, D) are decoded."""
    side.eval()
    return (
        lambda: side.encode(to_tensor(images, config, torch.float32)),
        lambda: from_tensor(side.decode(vectors)),
    )


def sampled_grids() -> Callable[[], Any]:
    """Draws 64 pictures of 7 x 7 codes by a decoder of the size of scripts/bench_codes.py's."""
    signature = Signature("image", (256,), frames=49)
    config = DecoderConfig(trunk=TransformerConfig(4, 128, 4, 4, 352))
    lm = LM(config, Vocabulary([signature])).eval()
    empty = Segment("image", codes=np.zeros((0, 1), np.int32))
    prompts = [Document((None, empty), (False, True), open_end=True)] * 64
    return lambda: generate(lm, prompts, Sampling(), torch.Generator().manual_seed(0))


def main() -> None:
    """Measures and prints what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", help="of pictures; speed needs none")
    add("--fashion", type=Path, help="a folder with MNIST's four files")
    add("--only", nargs="+", choices=CHOICES, default=["natural"])
    add("--seconds", type=float, default=60.0, help="CPU seconds of a training")
    add("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "speed" in options.only:
        speed()
    if options.folder is None and set(options.only) & {"natural", "perceptual"}:
        raise UserError("give the FOLDER of pictures")
    if "natural" in options.only:
        natural(options.folder, options.seconds, options.seeds)
    if "perceptual" in options.only:
        perceptual(options.folder, options.seconds, options.seeds)
    if options.fashion is not None:
        fashion(options.fashion, options.seeds)


if __name__ == "__main__":
    called(main)
