"""What heads take for granted is held against tasks and data before training: both numbers are
told, and nothing where they fit.
"""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.core.segment import Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.tasks import InputMasking, Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.diffusion.schedules import EDM, CondOT
from mmtok.errors import UserError
from mmtok.heads.cascade import Cascade, Stage
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.regression import Regression
from mmtok.heads.sampling import Sampling
from mmtok.heads.set_diffusion import SetDiffusion
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.denoisers import DiTConfig, TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.unet import UNetConfig
from mmtok.train.checks import (
    check_freq_masks,
    check_guidance,
    check_sets,
    check_targets,
    check_variances,
    warn_pairing,
    warn_sigma_data,
)


def FRAMES(column):
    return FrameDiffusion(schedule=column, network=TokenMLPConfig(1, 8))


def GRID(column, **more):
    return GridDiffusion(schedule=column, network=DiTConfig(1, 8, 1), **more)


def lm_of(signature, head):
    trunk = TransformerConfig(1, 16, 2, 2, 24)
    return LM(
        DecoderConfig(trunk, {signature.modality: head}),
        Vocabulary([Signature("text", (4,)), signature]),
    )


def told(signature, head, latents, tmp_path):
    """What is said of a head that is to learn these latents (N, T, D), which lie in one of two
    fields of that modality.
    """
    rows = [{"a": Segment(signature.modality, latents=x.astype(np.float32))} for x in latents]
    rows += [
        {"b": Segment(signature.modality, latents=(99 * x).astype(np.float32))} for x in latents
    ]  # is not made
    write_tokens(tmp_path / "t.parquet", {"a": signature, "b": signature}, rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_sigma_data(
            lm_of(signature, head),
            lambda: [read_tokens(tmp_path / "t.parquet")],
            {"a": signature.modality},
            0,
        )
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    "make, signature",
    [
        (FRAMES, Signature("voice", latent_size=3)),
        (GRID, Signature("voice", latent_size=3, frames=4)),
    ],
)
def test_a_sigma_data_that_does_not_fit_is_told_with_both_numbers(make, signature, rng, tmp_path):
    latents = 2 * rng.normal(size=(50, 4, 3))
    rms = np.sqrt(np.square(latents).mean())
    (text,) = told(signature, make(EDM()), latents, tmp_path)
    assert text.startswith(f"voice: sigma_data is 0.5 but the data's root mean square is {rms:.4g}")
    assert told(signature, make(EDM(sigma_data=2.0)), latents, tmp_path) == []
    for far_off in (0.02, 40.0, 2000.0):
        assert len(told(signature, make(EDM(sigma_data=far_off)), latents, tmp_path)) == 1
    assert told(signature, make(CondOT()), latents, tmp_path) == []  # has no such constant
    assert told(signature, make(EDM()), latents[:0], tmp_path) == []


def test_frames_of_a_few_segments_that_differ_in_loudness_count_as_few(tmp_path, rng):
    """Five of 200 frames say little of the spread of all, and one says nothing; four hundred times
    too wide is told.
    """
    signature = Signature("voice", latent_size=3)
    latents = rng.normal(size=(5, 200, 3)) * np.array([0.3, 0.5, 1.0, 1.2, 1.6])[:, None, None]
    heads = [
        FRAMES(EDM(sigma_data=1.15 * s * np.sqrt(np.square(latents).mean()))) for s in (1, 400)
    ]
    assert [len(told(signature, head, latents, tmp_path)) for head in heads] == [0, 1]
    assert told(signature, heads[0], latents[:1], tmp_path) == []


def test_discrete_data_count_as_wide_as_training_spreads_them(tmp_path, rng):
    signature = Signature("image", latent_size=2, frames=2, cells=2)
    latents = rng.choice([-0.5, 0.5], (400, 2, 2))
    spread = np.sqrt(0.25 + 1 / 12)
    for sigma_data, dequantise, n in (
        (spread, True, 0),
        (0.5, False, 0),
        (0.5, True, 1),
        (spread, False, 1),
    ):
        assert (
            len(
                told(
                    signature,
                    GRID(EDM(sigma_data=sigma_data), dequantise=dequantise),
                    latents,
                    tmp_path,
                )
            )
            == n
        )


def test_a_cascade_is_told_stage_by_stage(tmp_path, rng):
    """Means over squares of 2 x 2 independent numbers have half their spread."""
    signature = Signature("image", latent_size=4, frames=4)
    network = UNetConfig((4,), 1, 1)

    def stages(*spreads):
        return Cascade(
            tuple(Stage(schedule=EDM(sigma_data=s), network=network) for s in spreads), patch=2
        )

    latents = rng.normal(size=(500, 4, 4))
    assert told(signature, stages(0.5, 1.0), latents, tmp_path) == []
    (text,) = told(signature, stages(1.0, 1.0), latents, tmp_path)
    assert text.startswith("image: stage 0: sigma_data is 1 but the data's root mean square is 0.")


@pytest.mark.parametrize("dial", [{"infill": 0.5}, {"max_target_frames": 2}])
def test_segments_drawn_as_a_whole_cannot_be_cut(dial):
    fields = {"caption": "text", "image": "image"}
    task = Task(("caption",), ("image",), **dial)
    whole = [
        lm_of(Signature("image", latent_size=3, frames=4), GRID(CondOT())),
        lm_of(Signature("image", (5,), frames=4), MaskedDiffusion(DiTConfig(1, 8, 1))),
    ]
    for lm, head in zip(whole, ("GridDiffusion", "MaskedDiffusion")):
        says = f"caption -> image: its {next(iter(dial))} is .*{head} fills in all frames of image"
        with pytest.raises(UserError, match=f"{says} at once"):
            check_targets(lm, [task], fields)
        check_targets(
            lm, [Task(("caption",), ("image",)), Task(("image",), ("caption",), **dial)], fields
        )
    check_targets(
        lm_of(Signature("image", latent_size=3, frames=4), FRAMES(CondOT())), [task], fields
    )


def test_guidance_needs_what_it_leads_away_from():
    fields = {"caption": "text", "image": "image", "view": "image"}
    given = Task(("caption",), ("image",))
    left_out = Task(("caption",), ("image",), cond_dropout=0.1)
    guided = {"image": Sampling(guidance=1.5)}
    for tasks in ([given], [Task((), ("image",)), replace(given, targets=("view",)), left_out]):
        with pytest.raises(
            UserError,
            match=(
                rf"sampling.image.guidance is 1.5, .* set tasks.{len(tasks) // 2}.cond_dropout"
                r" above 0"
            ),
        ):
            check_guidance(tasks, fields, guided)
        check_guidance(tasks, fields, {"image": Sampling(), "text": Sampling(guidance=2.0)})
    # of equal orders prompts ask the first; one that is cut short is never asked
    check_guidance(
        [
            replace(given, max_target_frames=3),
            left_out,
            replace(given, targets=("view",)),
            Task(("image",), ("caption",)),
        ],
        fields,
        guided,
    )


def test_pairing_under_a_condition_is_warned_of():
    pytest.importorskip("ot")
    signature = Signature("image", latent_size=3, frames=4)
    fields = {"caption": "text", "image": "image"}
    given = Task(("caption",), ("image",))
    alone = Task((), ("image",))
    paired = lm_of(signature, GRID(CondOT(), pairing=True))
    plain = lm_of(signature, GRID(CondOT()))
    with pytest.warns(
        UserWarning,
        match=(
            "image: pairing noise by optimal transport ties it to the condition of task caption ->"
            " image"
        ),
    ) as caught:
        warn_pairing(paired, [given], fields)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_pairing(
            paired,
            [
                alone,
                Task(("caption",), ("image",), cond_dropout=1.0),
                Task(("image",), ("caption",)),
            ],
            fields,
        )
        warn_pairing(plain, [given], fields)


def test_the_command_line_notes_and_refuses(tiny_words, tmp_path, capsys):
    words = [
        *tiny_words,
        "--tokenizers.image",
        '{"kind": "PixelLatentsConfig", "height": 4, "width": 4, "n_levels": 4}',
        "--input_masking",
        "{}",
        "--train.steps",
        "1",
    ]
    heads = {"speech": {"kind": "Parallel"}, "jets": {"kind": "Chained"}}
    grid = {
        "kind": "GridDiffusion",
        "network": {"kind": "DiTConfig", "depth": 1, "width": 8, "n_heads": 1},
        "patch": 2,
        "schedule": {"kind": "EDM"},
    }

    def asked(out, heads, *more):
        return main(
            ["train", *words, "-o", str(tmp_path / out), "--model.heads", json.dumps(heads), *more]
        )

    assert asked("a", heads) == 2
    assert (
        "model.heads has no head for it: add FrameDiffusion(), GridDiffusion() or Cascade()"
        in capsys.readouterr().err
    )
    assert (
        asked("b", {**heads, "image": grid}) == 2
        and "its infill is 0.3, but GridDiffusion fills in all frames of image at once"
        in capsys.readouterr().err
    )
    assert asked("c", {**heads, "image": grid}, "--tasks.0.infill", "0") == 0
    assert (
        "mmtok: note: image: sigma_data is 0.5 but the data's root mean square is 0."
        in capsys.readouterr().err
    )


def test_bands_of_frames_that_have_one_channel_are_refused():
    signatures = {
        "text": Signature("text", (4,)),
        "voice": Signature("voice", latent_size=3),
        "speech": Signature("speech", (2,) * 5),
    }
    fields = {"caption": "text", "clip": "voice", "said": "speech"}
    check_freq_masks(
        {
            "clip": InputMasking(n_freq_masks=1),
            "said": InputMasking(n_freq_masks=1),
            "caption": InputMasking(drop_prob=0.1),
        },
        fields,
        signatures,
    )
    with pytest.raises(
        UserError,
        match="input_masking.caption.n_freq_masks is 2, but a frame of text has one channel",
    ):
        check_freq_masks({"caption": InputMasking(n_freq_masks=2)}, fields, signatures)


@pytest.mark.parametrize("most, refused", [(10, None), (40, "cut at 10 frames.*max_frames to 10")])
def test_sets_cut_below_what_their_head_counts_to_are_refused(most, refused, tmp_path):
    """Of the fields that are made: half of the sets of `a` have 10 frames of more."""
    signature = Signature("cloud", latent_size=2, unordered=True)
    head = SetDiffusion(network=DiTConfig(1, 8, 1), max_frames=most)
    x = np.zeros((10, 2), np.float32)
    rows = [
        {"a": Segment("cloud", latents=x[: 4 + 6 * cut], truncated=cut)} for cut in (False, True)
    ]
    rows.append({"b": Segment("cloud", latents=x[:3], truncated=True)})  # is not made
    write_tokens(tmp_path / "t.parquet", {"a": signature, "b": signature}, rows)

    def check(made):
        files = [read_tokens(tmp_path / "t.parquet")]
        check_sets(lm_of(signature, head), lambda: files, dict.fromkeys(made, "cloud"))

    check([])
    if refused is None:
        return check(["a"])
    with pytest.raises(UserError, match=refused):
        check(["a"])


@pytest.mark.parametrize("learned_sigma", [False, True])
def test_a_learned_variance_of_no_predicted_loss_is_refused(learned_sigma):
    """A Gaussian's loss keeps its weight, and the text is only read."""
    trunk = TransformerConfig(1, 16, 2, 2, 24)
    config = DecoderConfig(trunk, {"y": Regression()}, learned_sigma=learned_sigma)
    words = Signature("text", (4,))
    lm = LM(config, Vocabulary([words, Signature("y", latent_size=2, frames=1)]))
    fields = {"caption": "text", "y": "y"}
    there = Task(("caption",), ("y",))
    back = Task(("y",), ("caption",))
    check_variances(lm, [there, back], fields)
    check_variances(lm, [Task(("caption",), ("y",), loss_on_inputs=True)], fields)
    if learned_sigma:
        with pytest.raises(UserError, match="no task predicts .* .predicted: y; densities"):
            check_variances(lm, [there], fields)
    else:
        check_variances(lm, [there], fields)
