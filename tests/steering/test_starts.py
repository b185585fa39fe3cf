"""Features found by words and by example texts: planted answers, oracles in plain numpy, and the demo pack."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

from saeflow.demo import DOMAINS, texts
from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Add
from saeflow.labels import FeatureWords, no_words, open_words
from saeflow.matching.atlas import open_atlas
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.steering.activity import activity
from saeflow.steering.starts import Side, corrected, find_by_texts, find_by_words
from saeflow.steering.theme import load_theme, themes
from tests.experiments.planted import TOKENS, plant

SITE = Site.parse("2/res")


class Known:
    """Words of one site, a feature a row."""

    def __init__(self, *rows):
        self.rows = list(rows)

    def get(self, feature):
        return self.rows[feature.index] if feature.site == SITE and feature.index < len(self.rows) else None

    def site(self, site):
        return self.rows if site == SITE else []


def about(label, tokens=(), promotes=(), frequency=0.01):
    return FeatureWords(label, tuple(tokens), tuple(promotes), (), frequency)


def order(words, query, **options):
    return [found.feature.index for found in find_by_words(words, query, [SITE], **options)]


class TestByWords:
    def test_a_whole_word_ranks_above_a_beginning_above_a_match_inside(self):
        inside = about("reinforced", [" reinforce", " reinforced"], [" enforce"])
        begins = about("forces, forced", [" forces", " forced"], [" forces"])
        whole_late = about("x", ["a", "b", "c", "d", "e", " Force"])
        assert order(Known(inside, begins, None, whole_late), "force") == [3, 1, 0]

    def test_more_places_and_earlier_tokens_rank_higher_within_a_level(self):
        late = about("x", ["a", " b", " energy"])
        early = about("x", [" energy", "a"])
        twice = about("x", [" energy"], [" energy"])
        thrice = about("of energy", [" energy"], ["energy"])
        assert order(Known(late, early, twice, thrice), "energy") == [3, 2, 1, 0]

    def test_more_terms_rank_higher_and_share_says_how_many_were_met(self):
        words = Known(about("king"), about("king, queen"), about("sea"))
        found = find_by_words(words, "King, QUEEN", [SITE])
        assert [row.feature.index for row in found] == [1, 0]
        assert [row.share for row in found] == [1.0, 0.5]
        assert "king" in found[1].why
        assert "queen" not in found[1].why

    def test_a_piece_of_a_token_meets_the_word_it_begins(self):
        assert order(Known(about("x", [" veloc"]), about("x", ["ve"])), "velocity") == [0]

    def test_signs_are_terms_too(self):
        assert order(Known(about("x", ["=$", " ="]), about("x", [" $"]), about("x", ["y"])), "$") == [1, 0]

    def test_frequency_is_told_and_nan_where_unknown(self):
        found = find_by_words(Known(about("sea", frequency=None), about("sea")), "sea", [SITE])
        assert math.isnan(found[0].background)
        assert found[1].background == 0.01
        assert [(row.p, row.replicated) for row in found] == [(None, None)] * 2

    def test_limit_is_the_head_of_the_list(self):
        words = Known(*[about("sea", ["x"] * place + ["sea"]) for place in range(9, 0, -1)])
        assert order(words, "sea", limit=3) == order(words, "sea")[:3] == [8, 7, 6]

    @pytest.mark.parametrize(
        ("query", "sites", "limit", "words"),
        [
            (" , ", [SITE], 5, "holds no word"),
            ("sea", [], 5, "0 sites"),
            ("sea", [SITE], 0, "limit = 0"),
            ("sea", [Site.parse("1/res")], 5, "nothing is known of features at 1/res"),
        ],
    )
    def test_what_cannot_be_looked_for_is_refused(self, query, sites, limit, words):
        with pytest.raises(InvalidArgument, match=words):
            find_by_words(Known(about("sea")), query, sites, limit)

    def test_the_demo_pack_s_physics_feature_is_found(self):
        words = open_words(open_atlas("demo").folder)
        found = find_by_words(words, "force velocity acceleration energy", [Site.parse("3/res")], 3)
        assert found[0].feature == FeatureId.parse("3/res/541")
        assert found[0].share == 1.0


@pytest.fixture(scope="module")
def planted():
    return plant()


def sentences(word, n, seed):
    """Texts of the planted vocabulary in which every other token is `word`; any word where None."""
    rng = np.random.default_rng(seed)
    others = [token for token in TOKENS if token != word]
    made = [rng.choice(others if word else list(TOKENS), 10).tolist() for _ in range(n)]
    return [" ".join(f"{word} {one}" if word else one for one in words) for words in made]


class TestActivity:
    def test_means_are_those_of_encode_over_the_tokens_of_each_text_alone(self, planted):
        told = [*sentences(None, 18, 3), "carry", "carry carry source write"]
        sites = [Site.parse("0/res"), Site.parse("1/mlp"), Site.parse("1/att")]
        found = activity(planted.model, planted.dictionaries, told, sites=sites)
        assert found.sites == (sites[0], sites[2], sites[1])  # in order of computation
        assert found.lengths.tolist() == [len(text.split()) for text in told]
        for site in sites:
            for number, text in enumerate(told):
                h = planted.model.capture(planted.tokens(text), [site])[site][0, 1:]  # without begin-of-text
                expected = planted.dictionaries[site].encode(h).mean(0).numpy()
                np.testing.assert_allclose(found.means[site][[number]].toarray()[0], expected, atol=1e-6)

    def test_residual_sites_are_looked_at_when_none_are_named_and_progress_is_told(self, planted):
        told, seen = sentences(None, 20, 0), []
        whole = activity(planted.model, planted.dictionaries, told, progress=lambda *now: seen.append(now))
        assert whole.sites == tuple(Site(layer, Part.RES) for layer in range(3))
        assert [(done, total) for done, total, _ in seen] == [(0, 2), (1, 2)]

    def test_max_length_counts_the_begin_of_text_token(self, planted):
        found = activity(planted.model, planted.dictionaries, ["carry " * 9], max_length=5)
        assert found.lengths.tolist() == [4]

    def test_what_has_no_token_or_no_site_is_refused(self, planted):
        with pytest.raises(InvalidArgument, match="'<eos>' has no token that is not special"):
            activity(planted.model, planted.dictionaries, ["carry", "<eos>"])
        with pytest.raises(InvalidArgument, match="no site to look at"):
            activity(planted.model, planted.dictionaries, ["carry"], sites=[])


def random_side(seed, on=12, off=30, features=40):
    """Sparse nonnegative activations, some features silent on one side or on both, one constant."""
    rng = np.random.default_rng(seed)
    pair = []
    for n, boost in ((on, 1.5), (off, 1.0)):
        values = rng.gamma(2.0, boost, (n, features)) * (rng.random((n, features)) < rng.random(features))
        values[:, 0] = 0
        values[:, 1] = 0.7
        values[:, 2] *= n == on
        values[:, 3] *= n == off
        pair.append(values)
    return Side(*map(sp.csc_array, pair)), *pair


class TestStatistics:
    @pytest.mark.parametrize("seed", range(5))
    def test_effects_are_hedges_g(self, seed):
        side, on, off = random_side(seed)
        n, k = len(on), len(off)
        found = side.effects()
        for column in range(4, on.shape[1]):
            a, b = on[:, column], off[:, column]
            pooled = math.sqrt(((n - 1) * a.var(ddof=1) + (k - 1) * b.var(ddof=1)) / (n + k - 2)) or math.inf
            g = (1 - 3 / (4 * (n + k) - 9)) * (a.mean() - b.mean()) / pooled
            assert found[column] == pytest.approx(g, rel=1e-9)
        assert found[0] == found[1] == 0  # never active, and equally active everywhere
        assert found[2] > 0 > found[3]
        shares = side.shares()
        np.testing.assert_allclose(shares[0], (on > 0).mean(0))
        np.testing.assert_allclose(shares[1], (off > 0).mean(0))

    @pytest.mark.parametrize("seed", range(3))
    def test_p_values_are_scipy_s_for_each_feature_alone(self, seed, monkeypatch):
        monkeypatch.setattr("saeflow.steering.starts._TESTED_AT_ONCE", 7)  # several rounds
        side, on, off = random_side(seed)
        found, effects = side.p_values(), side.effects()
        for column in range(on.shape[1]):
            one = stats.mannwhitneyu(on[:, column], off[:, column], alternative="greater", method="asymptotic")
            expected = one.pvalue if effects[column] > 0 else 1.0
            assert found[column] == pytest.approx(expected, abs=1e-12)

    def test_p_values_of_several_sites_are_corrected_together(self):
        rng = np.random.default_rng(0)
        p = [rng.random(5) ** 4, rng.random(3), rng.random(9) ** 2]
        flat = np.concatenate(p)
        m, ranked = len(flat), np.argsort(flat)
        adjusted = np.empty(m)
        lowest = 1.0
        for rank in range(m, 0, -1):
            lowest = min(lowest, flat[ranked[rank - 1]] * m / rank)
            adjusted[ranked[rank - 1]] = lowest
        found = corrected(p)
        assert [len(part) for part in found] == [5, 3, 9]
        np.testing.assert_allclose(np.concatenate(found), adjusted)


class TestByTexts:
    def test_the_planted_features_of_a_word_are_found_at_every_site_it_reaches(self, planted):
        sites = [site for site in planted.dictionaries if site.part is not Part.ATT]
        made = find_by_texts(
            planted.model, planted.dictionaries, sentences("write", 24, 1), sentences(None, 60, 2), sites=sites
        )
        named = {planted.feature("0/res", "write_cause"), planted.feature("1/mlp", "written")}
        named |= {planted.feature(f"{layer}/res", "write_cause") for layer in (1, 2)}
        named |= {planted.feature(f"{layer}/res", "written") for layer in (1, 2)}
        assert {found.feature for found in made.found} == named
        assert [found.effect for found in made.found] == sorted((f.effect for f in made.found), reverse=True)
        for found in made.found:
            assert found.share == 1.0
            assert found.p is not None
            assert found.p < 1e-4
            assert found.replicated is not None
            assert found.replicated > 1.5
        assert made.check is not None
        assert made.check.auc > 0.95
        assert (made.check.texts, made.check.background) == (12, 30)
        assert made.looked_at == sum(planted.dictionaries[site].n_features for site in sites)

    def test_nothing_is_found_where_both_are_drawn_alike(self, planted):
        found = [
            find_by_texts(
                planted.model, planted.dictionaries, sentences(None, 24, seed), sentences(None, 60, 90 + seed)
            )
            for seed in range(10)
        ]
        assert sum(bool(made.found) for made in found) <= 2  # each with a chance of fdr = 0.05
        assert all(made.check is None for made in found if not made.found)

    def test_held_out_halves_are_not_chosen_with(self, planted, monkeypatch):
        """A feature planted into the second halves alone is not found, and one of the first does not replicate."""
        target = planted.feature("0/res", "both")
        told, others = sentences(None, 20, 5), sentences(None, 40, 6)
        halves = {}

        def split(n, rng, hold_out):
            halves[n] = np.arange(n) < n // 2
            return halves[n]

        monkeypatch.setattr("saeflow.steering.starts._first_half", split)
        rich = ["double " * 8 + text for text in told]
        first = find_by_texts(planted.model, planted.dictionaries, rich[:10] + told[10:], others, sites=[target.site])
        assert [found.feature for found in first.found] == [target]
        assert first.found[0].effect > 2
        assert abs(first.found[0].replicated) < 1
        second = find_by_texts(planted.model, planted.dictionaries, told[:10] + rich[10:], others, sites=[target.site])
        assert second.found == ()

    def test_all_texts_are_chosen_with_when_none_are_held_out(self, planted):
        told, others = sentences("write", 3, 1), sentences(None, 40, 2)
        made = find_by_texts(planted.model, planted.dictionaries, told, others, hold_out=False, fdr=1.0)
        assert made.found
        assert made.check is None
        assert {found.replicated for found in made.found} == {None}

    def test_background_is_cut_to_the_length_of_the_texts(self, planted):
        """A feature that fires once in a long background text is not compared by its length."""
        told = sentences("write", 8, 1)
        long = ["nothing " * 30 + "write" for _ in range(24)]
        made = find_by_texts(planted.model, planted.dictionaries, told, long, sites=[Site.parse("0/res")])
        [best] = [f for f in made.found if f.feature == planted.feature("0/res", "write_cause")]
        assert best.background == 0.0

    def test_the_same_seed_finds_the_same(self, planted):
        arguments = (planted.model, planted.dictionaries, sentences("source", 12, 1), sentences(None, 30, 2))
        assert find_by_texts(*arguments, seed=4) == find_by_texts(*arguments, seed=4)
        assert find_by_texts(*arguments).found[:2] == find_by_texts(*arguments, limit=2).found

    def test_torch_s_generator_is_left_alone(self, planted):
        state = torch.get_rng_state()
        find_by_texts(planted.model, planted.dictionaries, sentences("source", 4, 1), sentences(None, 4, 2))
        assert torch.equal(state, torch.get_rng_state())

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"limit": 0}, "limit = 0"),
            ({"min_share": 1.5}, "min_share = 1.5"),
            ({"fdr": 0.0}, "fdr = 0.0"),
            ({"sites": []}, "no site to look at"),
        ],
    )
    def test_settings_outside_their_range_are_refused(self, planted, options, words):
        told = sentences(None, 6, 0)
        with pytest.raises(InvalidArgument, match=words):
            find_by_texts(planted.model, planted.dictionaries, told, told, **options)

    def test_too_few_texts_are_refused(self, planted):
        for told, others in ((3, 9), (9, 3)):
            with pytest.raises(InvalidArgument, match=r"too few to compare\. Give 4 or more"):
                find_by_texts(planted.model, planted.dictionaries, sentences(None, told, 0), sentences(None, others, 0))


@pytest.fixture(scope="module")
def demo():
    return load_model("demo"), load_dictionaries("demo")


@pytest.mark.parametrize("name", ["physics", "python", "word-problems"])
def test_starts_of_a_demo_theme_are_found_by_its_examples_and_replicate(demo, name):
    theme = load_theme(name, "demo")
    background = [text for domain in DOMAINS for text in texts(domain, 8)]
    background += [text for other in themes("demo") if other != theme for text in other.examples[::4]]
    sites = sorted({start.site for start in theme.starts})
    made = find_by_texts(*demo, theme.examples, background, sites=sites, limit=200, words=no_words)
    found = {row.feature: row for row in made.found}
    assert set(theme.starts) <= set(found)
    for start in theme.starts:
        assert found[start].replicated is not None
        assert found[start].replicated > 0.7
    assert made.check is not None
    assert made.check.auc > 0.9


@pytest.mark.parametrize(
    "theme", [theme for theme in themes("demo") if theme.name != "python"], ids=lambda theme: theme.name
)
def test_adding_the_starts_of_a_demo_theme_makes_its_texts_likelier_than_others(demo, theme):
    """Steering costs on every text; on the theme's own it costs less, or nothing.

    Code is plain to the model from its first token, so that adding what it reads there cannot help: not asked of it.
    """
    model, dictionaries = demo
    others = [text for other in themes("demo") if other != theme for text in other.examples[::7]]
    sites = sorted({start.site for start in theme.starts})
    edits = [Add({start: 4.0 for start in theme.starts if start.site == site}) for site in sites]

    def loss(passages):
        return float(model.loss(model.tokenize(passages, max_length=48)).nanmean())

    own, rest = loss(list(theme.examples)), loss(others)
    with model.intervening(edits, dictionaries):
        own_steered, rest_steered = loss(list(theme.examples)), loss(others)
    assert own_steered - own < rest_steered - rest - 0.03
