"""Laws of the jet grid: half a bin per feature, pt codes never rise, every legal code decodes."""

from dataclasses import replace

import numpy as np
import pytest

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers import load
from mmtok.tokenizers.jet_totals import of_jets
from mmtok.tokenizers.jets import JetGrid, JetGridConfig


def make_jets(n=20, seed=0, most=100):
    rng = np.random.default_rng(seed)
    jets = []
    for _ in range(n):
        pt = np.sort(np.exp(rng.normal(1.0, 1.2, rng.integers(1, most))))[::-1]
        jets.append(np.stack((pt, *rng.normal(0, 0.2, (2, len(pt)))), 1).astype(np.float32))
    return jets


def falling(codes):
    """Whether frames (T, C) fall in lexicographic order, or stay."""
    rows = codes.tolist()
    return all(a >= b for a, b in zip(rows, rows[1:], strict=False))


def in_order(grid, jet):
    """The particles of a jet in the order in which they are written."""
    alone = JetGrid(replace(grid.config, allow_clipping=True))
    codes = np.concatenate([alone.encode(particle[None]).codes for particle in jet])
    return jet[np.lexsort((*-jet.T[::-1], *-codes.T[::-1]))]


EQUAL = (0.0, 0.0, 0.0)  # core: all bins are equal


def stretched(config, jet):
    """Constituents (P, 3) in the measure in which the bins of each feature are equal."""
    columns = [np.log(jet[:, 0])]
    for column, core in zip(jet.T[1:], config.cores[1:], strict=True):
        columns.append(np.arcsinh(column / core) if core else column)
    return np.stack(columns, 1)


def widths(config):
    """Of bins, in that measure."""
    ends = []
    for edge in (config.low, config.high):
        ends.append(stretched(config, np.array([[np.exp(edge[0]), *edge[1:]]]))[0])
    return (ends[1] - ends[0]) / (np.array(config.bins) - 2)


@pytest.mark.parametrize("core", [(), EQUAL, (0.0, 0.2, 0.0)])
def test_round_trip_is_within_half_a_bin(core):
    config = JetGridConfig(core=core)
    jets = make_jets()
    grid = config.build()
    for jet in jets:
        back = grid.decode(grid.encode(jet))
        jet = in_order(grid, jet)
        inside = (
            (np.abs(jet[:, 1:]) < 0.8).all(1) & (np.log(jet[:, 0]) > -2) & (np.log(jet[:, 0]) < 6.9)
        )
        error = np.abs(stretched(config, back) - stretched(config, jet))
        assert inside.sum() > 0.9 * len(jet) - 1 and back.dtype == np.float32
        assert (error[inside] <= widths(config) / 2 + 1e-5).all()


def test_error_of_a_uniform_feature_is_the_width_over_root_twelve():
    config = JetGridConfig(core=EQUAL)
    x = np.random.default_rng(0).uniform(-0.8, 0.8, 20_000)
    jets = np.stack((np.ones_like(x), x, -x), 1).astype(np.float32)[:, None]
    grid = config.build()
    error = (np.stack(grid.decode_batch(grid.encode_batch(jets))) - jets)[:, 0, 1:]
    np.testing.assert_allclose(error.std(0), widths(config)[1:] / np.sqrt(12), rtol=0.01)


def test_bins_are_fine_about_the_axis_and_have_the_same_range():
    axis = JetGridConfig(bins=(41, 31, 31), allow_clipping=True).build()
    equal = JetGridConfig(bins=(41, 31, 31), core=EQUAL, allow_clipping=True).build()
    codes = np.stack([np.full(31, 20), np.arange(31), np.full(31, 15)], 1)[::-1]
    angles = axis.decode(Segment("jets", codes=codes))[::-1, 1]
    steps = np.diff(angles[1:-1])
    assert (np.diff(steps[:14]) < 0).all() and (np.diff(steps[14:]) > 0).all()
    assert steps.min() < 0.25 * 1.6 / 29 and abs(angles[15]) < 1e-6
    edge = np.array([[1, -0.8001, 0.7999], [1, -0.7999, 0.8001]])
    np.testing.assert_array_equal(axis.encode(edge).codes, equal.encode(edge).codes)


def test_codes_decode_to_themselves_and_every_legal_code_decodes():
    grid = JetGridConfig(allow_clipping=True).build()
    rng = np.random.default_rng(1)
    codes = rng.integers(0, grid.signature.levels, (128, 3))
    codes = codes[np.lexsort(-codes.T[::-1])]
    jet = grid.decode(Segment("jets", codes=codes))
    assert np.isfinite(jet).all() and (jet[:, 0] > 0).all()
    np.testing.assert_array_equal(grid.encode(jet).codes, codes)
    edge = np.array([[40, 0, 30], [0, 30, 0]])
    np.testing.assert_array_equal(grid.encode(grid.decode(Segment("jets", codes=edge))).codes, edge)
    assert grid.decode(Segment("jets", codes=np.zeros((0, 3), int))).shape == (0, 3)
    assert grid.decode(Segment("jets", codes=codes[::-1])).shape == (128, 3)


def test_signature_and_codes_agree():
    grid = JetGridConfig().build()
    jets = make_jets(30, most=300)
    assert (
        grid.signature.levels == (41, 61, 61)
        and grid.signature.frames is None
        and grid.signature.descending
    )
    for jet, segment in zip(jets, grid.encode_batch(jets), strict=True):
        assert (segment.codes >= 0).all() and (segment.codes < grid.signature.levels).all()
        assert falling(segment.codes)
        assert len(segment) == min(len(jet), 128) and segment.truncated == (len(jet) > 128)


def test_batch_equals_single_calls_with_empty_unsorted_and_padded_jets_among_them():
    grid = JetGridConfig().build()
    jets = make_jets(10, most=200)
    none = np.zeros((0, 3), np.float32)
    odd = [none, jets[0][::-1], none, np.concatenate((jets[1], np.zeros((5, 3), np.float32))), none]
    signals = [*odd, *jets, none]
    batch = grid.encode_batch(signals)
    for segment, signal in zip(batch, signals, strict=True):
        single = grid.encode(signal)
        np.testing.assert_array_equal(segment.codes, single.codes)
        assert segment.truncated == single.truncated
    np.testing.assert_array_equal(batch[1].codes, grid.encode(jets[0]).codes)
    np.testing.assert_array_equal(batch[3].codes, grid.encode(jets[1]).codes)
    assert [len(batch[i]) for i in (0, 2, 4, -1)] == [0, 0, 0, 0]
    for jet, segment in zip(grid.decode_batch(batch), batch, strict=True):
        np.testing.assert_array_equal(jet, grid.decode(segment))
    assert grid.encode_batch([]) == [] and grid.decode_batch([]) == []


@pytest.mark.parametrize("totals", [(), ("pt_gev", "mass_gev")])
@pytest.mark.parametrize("most", [128, 20])
def test_all_orders_of_a_jet_are_encoded_alike_also_where_the_cap_cuts(totals, most):
    grid = JetGridConfig(totals=totals, max_constituents=most).build()
    rng = np.random.default_rng(0)
    jets = [
        *make_jets(20, most=60),
        np.repeat(make_jets(1, most=30)[0], 3, 0),
    ]  # many share a bin of pt, some all three, some are equal
    jets += [
        np.stack((rng.uniform(5, 5.5, 40), *rng.uniform(-0.1, 0.1, (2, 40))), 1).astype(np.float32)
    ]
    for jet in jets:
        segment = grid.encode(jet)
        assert falling(segment.codes[len(totals) :])
        for _ in range(5):
            again = grid.encode(jet[rng.permutation(len(jet))])
            np.testing.assert_array_equal(again.codes, segment.codes)
            assert again.truncated == segment.truncated


def test_more_features_than_one_number_holds_are_ordered_too():
    names = ("pt_gev", *(f"x{i}" for i in range(13)))
    grid = JetGridConfig(
        features=names, bins=(41,) * 14, low=(-2,) + (-1,) * 13, high=(6.9,) + (1,) * 13
    ).build()
    jet = np.random.default_rng(0).uniform(1, 1.01, (50, 14)).astype(np.float32)
    jet[:, 1:] = np.random.default_rng(1).choice([-0.5, 0.0, 0.5], (50, 13))
    codes = grid.encode(jet).codes
    assert falling(codes) and np.array_equal(grid.encode(jet[::-1]).codes, codes)


def test_phi_wraps_at_pi():
    grid = JetGridConfig(low=(-2.0, -0.8, -np.pi), high=(6.9, 0.8, np.pi)).build()
    jet = np.array([[5.0, 0.1, 3.0], [4.0, 0.1, -3.1]])
    turned = jet + [0, 0, 2 * np.pi]
    np.testing.assert_array_equal(grid.encode(jet).codes, grid.encode(turned).codes)
    np.testing.assert_array_equal(
        grid.encode(jet).codes, grid.encode(turned - [0, 0, 4 * np.pi]).codes
    )


def test_what_lies_outside_is_clipped_and_counted():
    grid = JetGridConfig(allow_clipping=True).build()
    jet = np.array([[2000.0, 0, 0], [1.0, 5.0, 0], [1.0, 0, -1.0], [0.01, 0, 0]], np.float32)
    codes = grid.encode(jet).codes
    assert codes[0, 0] == 40 and codes[1, 1] == 60 and codes[2, 2] == 0 and codes[3, 0] == 0
    assert grid.fidelity([jet])["clipped_share"] == 1.0
    assert grid.fidelity(make_jets(5) + [jet[:0]])["clipped_share"] < 0.05
    with pytest.raises(UserError, match="at least one"):
        grid.fidelity([jet[:0]])


def test_finer_bins_keep_the_mass_better():
    jets = make_jets(200, most=128)
    coarse = JetGridConfig(bins=(22, 22, 22)).build().fidelity(jets)["mass_width_gev"]
    fine = JetGridConfig(bins=(82, 82, 82)).build().fidelity(jets)["mass_width_gev"]
    assert 3 < coarse / fine < 5.5  # the law is the ratio of the bins' widths, 4


def test_features_are_the_configs_own():
    config = JetGridConfig(
        features=("pt_gev", "eta_rel", "phi_rel", "charge"),
        bins=(41, 31, 31, 5),
        low=(-2, -0.8, -0.8, -1.5),
        high=(6.9, 0.8, 0.8, 1.5),
    )
    grid = config.build()
    jet = np.concatenate((make_jets(1, most=30)[0][:3], np.array([[-1], [0], [1]], np.float32)), 1)
    np.testing.assert_array_equal(grid.decode(grid.encode(jet))[:, 3], in_order(grid, jet)[:, 3])
    only_pt = JetGridConfig(features=("pt_gev",), bins=(41,), low=(-2,), high=(6.9,)).build()
    assert not only_pt.signature.one_channel and "mass_width_gev" not in only_pt.fidelity(
        [jet[:, :1]]
    )


def test_the_preset_jetclass_keeps_charges_and_kinds_and_small_impact_parameters():
    grid = JetGridConfig.jetclass().build()
    rng = np.random.default_rng(0)
    jet = make_jets(1, most=120)[0]
    n = len(jet)
    more = np.stack([rng.integers(-1, 2, n), rng.integers(0, 5, n), *rng.normal(0, 0.1, (2, n))], 1)
    jet = np.concatenate([jet, more.astype(np.float32)], 1)
    back = grid.decode(grid.encode(jet))
    jet = in_order(grid, jet)
    np.testing.assert_array_equal(back[:, 3:5], jet[:, 3:5])
    near = np.abs(jet[:, 5:]) < 0.01
    assert near.any() and (np.abs(back - jet)[:, 5:][near] < 0.01).all()
    assert load("jetclass").signature == grid.signature


def test_save_load_and_fingerprint(tmp_path):
    grid = JetGridConfig(max_constituents=40).build()
    jet = make_jets(1)[0]
    grid.save(tmp_path)
    again = JetGrid.load(tmp_path)
    assert again.signature == grid.signature and again.config == grid.config
    np.testing.assert_array_equal(again.encode(jet).codes, grid.encode(jet).codes)
    assert JetGridConfig().build().signature.fingerprint != grid.signature.fingerprint
    (tmp_path / "tokenizer.json").write_text('{"kind": "JetGrid", "colour": 1}')
    with pytest.raises(UserError, match="JetGrid"):
        JetGrid.load(tmp_path)


@pytest.mark.parametrize(
    "signal, said",
    [
        (np.array([[1.0, np.nan, 0.0]]), "NaN"),
        (np.array([[np.inf, 0.0, 0.0]]), "infinite"),
        (np.array([[-1.0, 0.0, 0.0]]), "negative pt"),
        (np.ones((4, 2)), "expected"),
        (np.ones(3), "expected"),
        (np.array([["a", "b", "c"]]), "expected"),
    ],
)
def test_bad_jets_are_refused_by_number(signal, said):
    grid = JetGridConfig().build()
    good = make_jets(2)
    with pytest.raises(UserError, match="jet 2.*" + said) as error:
        grid.encode_batch([*good, signal])
    assert "\n" not in str(error.value)


def test_bad_configs_are_refused():
    for fields in (
        {"bins": (41, 31)},
        {"features": ("eta_rel", "pt_gev", "phi_rel")},
        {"bins": (2, 31, 31)},
        {"low": (7.0, -0.8, -0.8)},
        {"core": (0.0, 0.05)},
        {"core": (0.1, 0.05, 0.05)},
        {"core": (0.0, -0.05, 0.05)},
        {"core": (0.0, np.inf, 0.05)},
    ):
        with pytest.raises(UserError, match="JetGridConfig"):
            JetGridConfig(**fields)


def test_mass_of_the_tokenizer_is_that_of_the_metric():
    from mmtok.metrics.jets import masses, summed_pts

    jets = make_jets()
    pt, mass = of_jets(jets)
    np.testing.assert_allclose(mass, masses(jets), rtol=1e-7, atol=1e-5)
    np.testing.assert_allclose(pt, summed_pts(jets))


BOTH = ("pt_gev", "mass_gev")


def test_totals_come_back_to_a_step_of_their_own():
    config = JetGridConfig(totals=BOTH)
    grid = config.build()
    plain = JetGridConfig().build()
    jets = [jet[:128] for jet in make_jets(300, seed=3, most=300)]
    (pt, mass) = of_jets(jets)
    step = np.log(20_000) / (31 * 31) + 1e-5
    back = grid.decode_batch(grid.encode_batch(jets))
    bare = plain.decode_batch(plain.encode_batch(jets))
    pt_back, mass_back = of_jets(back)
    assert (np.abs(np.log(pt_back / pt))[pt > 1] <= step).all()
    heavy = np.array([len(jet) > 4 for jet in jets]) & (mass > 1.02) & (pt > 1)
    assert heavy.sum() > 200 and (np.abs(np.log(mass_back[heavy] / mass[heavy])) <= step).all()
    for again, jet in zip(
        back, bare, strict=True
    ):  # one factor for all pt, one for all angles, both near one
        for columns, most in (
            (slice(0, 1), widths(config)[0] / 2 + step),
            (slice(1, 3), np.log(2)),
        ):
            factor = np.abs(again[:, columns]).sum() / max(np.abs(jet[:, columns]).sum(), 1e-9)
            np.testing.assert_allclose(
                again[:, columns], factor * jet[:, columns], rtol=1e-4, atol=1e-6
            )
            assert factor == 0 or abs(np.log(factor)) <= most + 1e-5 or jet[:, 0].sum() < 1


def test_decoded_totals_are_no_comb_and_are_encoded_as_they_were():
    grid = JetGridConfig(totals=BOTH, allow_clipping=True).build()
    jets = [jet[:128] for jet in make_jets(400, seed=5, most=120) if len(jet) > 10]
    segments = grid.encode_batch(jets)
    back = grid.decode_batch(segments)
    for again, segment in zip(grid.encode_batch(back), segments, strict=True):
        np.testing.assert_array_equal(again.codes[:2], segment.codes[:2])
    for total in of_jets(back):
        fraction = np.log(total) / np.log(20_000) * 31**2 % 1
        assert np.histogram(fraction, 4, (0, 1))[0].min() > 0.15 * len(jets)


def test_shares_of_pt_are_alike_in_jets_of_any_pt_and_come_back_in_gev():
    config = JetGridConfig(totals=BOTH, pt_share=True, low=(-9, -0.8, -0.8), high=(0, 0.8, 0.8))
    grid = config.fit([jet[:128] for jet in make_jets(50)])
    jet = in_order(JetGridConfig().build(), make_jets(3, seed=7)[2])
    hard = jet * np.float32([8, 1, 1])
    segments = grid.encode_batch([jet, hard])
    np.testing.assert_array_equal(segments[0].codes[2:], segments[1].codes[2:])
    for true, back in zip((jet, hard), grid.decode_batch(segments), strict=True):
        step = np.log(20_000) / 31**2 + 1e-5
        assert abs(np.log(back[:, 0].sum() / true[:, 0].sum())) < step
        ratio = np.log(np.sort(back[:, 0]) / np.sort(true[:, 0]))
        assert np.abs(ratio).max() < widths(config)[0] / 2 + 0.1  # and one factor for all
    bare = grid.unscaled(segments)
    assert abs(np.log(bare[1][:, 0].sum() / hard[:, 0].sum())) < step
    with pytest.raises(UserError, match="pt_share needs pt_gev among the totals"):
        JetGridConfig(pt_share=True)


def test_totals_outside_their_range_are_counted_by_jet():
    def pair(pt, angle):
        # massless: m = 2 pt sin(angle)
        return np.array([[pt, 0, angle], [pt, 0, -angle]], np.float32)

    inside = pair(50, 0.3)
    none = np.zeros((0, 3), np.float32)
    light = pair(50, 0.001)
    soft = pair(0.4, 0.3)
    hard = pair(12_000, 0.3)

    def share(totals, *jets, **fields):
        return JetGridConfig(totals=totals, **fields).build().fidelity(jets)["clipped_totals_share"]

    for jets, by_pt, by_mass, by_both in [
        ([inside], 0, 0, 0),
        ([inside, none], 0, 0, 0),
        ([inside, light], 0, 1 / 2, 1 / 2),
        ([soft, none, inside], 1 / 2, 1 / 2, 1 / 2),
        ([hard, inside, light, none], 1 / 3, 1 / 3, 2 / 3),
        ([hard, soft, light], 2 / 3, 2 / 3, 1),
    ]:
        assert np.allclose(
            [share(("pt_gev",), *jets), share(("mass_gev",), *jets), share(BOTH, *jets)],
            [by_pt, by_mass, by_both],
        )
    edges = [np.array([[pt, 0, 0]], np.float32) for pt in (1, 19_999, 20_000)]
    assert [share(("pt_gev",), jet) for jet in edges] == [0, 0, 1]
    assert share(("pt_gev",), hard, max_constituents=1) == 0, "of what is kept"
    assert "clipped_totals_share" not in JetGridConfig().build().fidelity([hard])


def test_the_default_grid_is_the_one_that_stored_tokens_were_made_with():
    grid = JetGridConfig().build()
    jets = make_jets(20, most=300)
    assert grid.signature.fingerprint == "142b34b89d0b"
    # of the recipes, and the default of the first edition
    coarse = JetGridConfig(bins=(41, 31, 31)).build()
    assert coarse.signature.fingerprint == "57e544e811b6"
    assert coarse.encode(jets[0]).codes[:3].tolist() == [[30, 7, 18], [27, 18, 8], [26, 6, 12]]
    assert set(grid.fidelity(jets)) == {
        "pt_ratio_width",
        "pt_ratio_median",
        "clipped_share",
        "clipped_pt_share",
        "truncated_share",
        "mass_width_gev",
        "mass_shift_gev",
    }


def test_totals_are_frames_of_their_own_and_keep_the_grammar():
    none = np.zeros((0, 3), np.float32)
    jets = [none, *make_jets(20, most=300), none]
    prints = {JetGridConfig().build().signature.fingerprint}
    for totals in (("pt_gev",), ("mass_gev",), BOTH, BOTH[::-1]):
        grid = JetGridConfig(totals=totals).build()
        for jet, segment in zip(jets, grid.encode_batch(jets), strict=True):
            assert len(segment) == min(len(jet), 128) + len(totals) * (
                len(jet) > 0
            ) and segment.truncated == (len(jet) > 128)
            assert (
                falling(segment.codes[len(totals) :])
                and (segment.codes < grid.signature.levels).all()
            )
            np.testing.assert_array_equal(segment.codes, grid.encode(jet).codes)
            np.testing.assert_array_equal(
                segment.codes[len(totals) :][: len(jet)], JetGridConfig().build().encode(jet).codes
            )
        prints.add(grid.signature.fingerprint)
    assert len(prints) == 5


def test_any_codes_decode_with_totals_also_lone_first_frames_and_totals_at_the_edges():
    grid = JetGridConfig(totals=BOTH, allow_clipping=True).build()
    rng = np.random.default_rng(2)
    lengths = (0, 1, 2, 3, 50, *[128] * 50, 1, 0)
    segments = [
        Segment("jets", codes=rng.integers(0, grid.signature.levels, (n, 3))) for n in lengths
    ]
    decoded = grid.decode_batch(segments)
    assert [len(jet) for jet in decoded] == [max(0, n - 2) for n in lengths]
    for jet, segment in zip(decoded, segments, strict=True):
        assert np.isfinite(jet).all() and (jet[:, 0] > 0).all() and (np.abs(jet[:, 1:]) < 2).all()
        np.testing.assert_array_equal(jet, grid.decode(segment))

    def lone(pt):
        return np.array([[pt, 0, 0]], np.float32)

    assert np.isclose(
        grid.decode(grid.encode(lone(1e5)))[0, 0], 20_000, rtol=0.011
    )  # above the range: the last step
    plain = JetGridConfig(allow_clipping=True).build()
    np.testing.assert_array_equal(
        grid.decode(grid.encode(lone(0.5))), plain.decode(plain.encode(lone(0.5)))
    )  # below: as it is
    wild = grid.encode(np.array([[1, 900, 0], [0.5, -900, 0]], np.float32))
    assert (wild.codes >= 0).all() and (wild.codes < grid.signature.levels).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"totals": ("energy",)},
        {"totals": ("pt_gev", "pt_gev")},
        {
            "totals": ("pt_gev",),
            "features": ("pt_gev", "eta_rel"),
            "bins": (41, 31),
            "low": (-2, -1),
            "high": (6, 1),
        },
    ],
)
def test_totals_that_cannot_be_are_refused(fields):
    with pytest.raises(UserError, match="totals"):
        JetGridConfig(**fields)


def test_unscaled_is_what_the_plain_grid_says():
    jets = make_jets(20)
    grid = JetGridConfig(totals=BOTH).build()
    plain = JetGridConfig().build()
    for own, bare in zip(
        grid.unscaled(grid.encode_batch(jets)),
        plain.decode_batch(plain.encode_batch(jets)),
        strict=True,
    ):
        np.testing.assert_array_equal(own, bare)
