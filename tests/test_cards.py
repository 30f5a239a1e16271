"""Cards gather what is stored and nothing else; the atlas' page opens every one of them by a click."""

import html.parser
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from test_atlas import COLOURS, NAMES, Page, a_layer

from harvis_utils.data.windowing import Split
from harvis_utils.figures import page, special, style
from harvis_utils.lenses import cards
from harvis_utils.settings import SimilaritySettings

SEEDS, LAYERS, N_UNITS, TIME, N_RANKS = (3, 7), ("conv1", "conv2"), 12, 30, 7
ACTIVITIES = ("sitting", "treadmill running", "ascending stairs")
AXES = ("wrist x", "wrist y")
CONCEPTS = ("rising edge", "falling edge", "peak", "gravity up", "treadmill running")
SIMILARITY = SimilaritySettings()


def made_lenses(seeds=SEEDS, scale=0.3, mixed=False) -> cards.Lenses:
    """Made-up results of two networks; in the second, units are those of the first in reverse order.

    Units that are ``mixed`` see all axes.
    """
    rng = np.random.default_rng(0)
    dims, shape = ("seed", "layer", "unit"), (len(seeds), len(LAYERS), N_UNITS)
    coords = {"seed": list(seeds), "layer": list(LAYERS), "unit": np.arange(N_UNITS)}
    axes = ("axis",) if mixed else ()
    inner = (len(AXES), TIME) if mixed else (TIME,)
    signal = scale * rng.normal(size=(1, len(LAYERS), N_UNITS, *inner)).cumsum(-1)
    signal = np.concatenate([signal, signal[:, :, ::-1]])[: len(seeds)]
    dead = np.zeros(shape, bool)
    dead[:, 0, 0] = True
    unit_map = np.abs(signal[..., 0, :] if mixed else signal) + 0.1
    signals = xr.Dataset(
        {"signal": ((*dims, *axes, "time"), signal), "map": ((*dims, "time"), unit_map), "dead": (dims, dead)}, coords
    )
    measured = {name: (dims, rng.random(shape)) for name in ("activation", "nearness")}
    iou = rng.random((*shape, len(CONCEPTS))) * 0.1
    f1 = rng.normal(size=(*shape, len(ACTIVITIES))) * 0.05
    top_dims, top_shape = ("layer", "unit", "rank"), (len(LAYERS), N_UNITS, N_RANKS)
    plane = ("input_axis", "sample")
    value = np.sort(rng.random(top_shape))[..., ::-1].copy()
    value[0, 0] = 0.0  # the dead unit
    projected = xr.Dataset(
        {
            "window": (top_dims, rng.integers(0, 20, top_shape)),
            "axis": (top_dims, rng.integers(0, 2, top_shape)),
            "value": (top_dims, value),
            "signal": ((*top_dims, *plane), rng.normal(size=(*top_shape, 2, TIME))),
            "projection": (("rule", *top_dims, *plane), rng.normal(size=(2, *top_shape, 2, TIME))),
        },
        {"rule": ["gradient", "deconvnet"], "layer": list(LAYERS), "unit": np.arange(N_UNITS)},
    )
    series = rng.normal(size=(400, 2)).astype(np.float32)
    number = np.arange(20)
    views = {}
    for depth, layer in enumerate(LAYERS):
        positions = rng.normal(size=(N_UNITS, 2))
        positions[0] = np.nan if depth == 0 else 0.0
        more = {"positions": positions, "signals": signal[0, depth], "activities": np.arange(N_UNITS) % 3 - 1}
        if mixed:
            more["windows"] = signal[0, depth] / 2 + 0.1
        views[layer] = a_layer(layer, N_UNITS, **more)
    return cards.Lenses(
        signals=signals,
        measured=xr.Dataset(measured, coords),
        dissected=xr.Dataset({"iou": ((*dims, "concept"), iou)}, coords | {"concept": list(CONCEPTS)}),
        ablated=xr.Dataset({"f1": ((*dims, "class"), f1)}, coords | {"class": range(3)}),
        projected=projected,
        searched=Split(series, number * 15, number % 3, number % 4, number, number, length=TIME),
        views=views,
    )


def deck(lenses):
    return cards.collect(lenses, SEEDS[0], ACTIVITIES, AXES, SIMILARITY)


LENSES, MIXED_LENSES = made_lenses(), made_lenses(mixed=True)
DECK, MIXED = deck(LENSES), deck(MIXED_LENSES)


# ------------------------------------------------------------------------------------------------------ gathering


def test_a_card_holds_what_every_lens_stored():
    lenses, found = LENSES, DECK
    assert [c.key for c in found] == [f"{la}-{u}" for la in LAYERS for u in range(N_UNITS)]
    for card in found:
        which = {"seed": 3, "layer": card.layer, "unit": card.unit}
        assert np.array_equal(card.signal, lenses.signals["signal"].sel(which))
        assert card.activation == float(lenses.measured["activation"].sel(which))
        iou, cost = lenses.dissected["iou"].sel(which), lenses.ablated["f1"].sel(which)
        assert card.iou == {str(c): float(iou.sel(concept=c)) for c in CONCEPTS}
        assert card.cost == {a: float(cost[k]) for k, a in enumerate(ACTIVITIES)}
        assert list(card.iou.values()) == sorted(card.iou.values(), reverse=True)
        assert set(card.detects) == {c for c in CONCEPTS if float(iou.sel(concept=c)) > 0.04}
        top = lenses.projected.sel(layer=card.layer, unit=card.unit, rule="deconvnet")
        for r, window in enumerate(card.windows):
            axis, number = int(top["axis"][r]), int(top["window"][r])
            assert np.array_equal(window.projection, top["projection"][r, axis])
            assert np.array_equal(window.signal, top["signal"][r, axis])
            assert window.activity == ACTIVITIES[number % 3] and window.axis == AXES[axis]
            assert window.subject == lenses.searched.subject[number]
    assert found[0].status == "dead" and found[0].windows == () and found[0].twin is None
    assert len(found[1].windows) == cards.N_WINDOWS and found[1].status == "used"
    assert found[0].neighbours == () and len(found[1].neighbours) == cards.N_NEIGHBOURS


def test_a_card_shows_the_largest_values_that_are_known(monkeypatch):
    monkeypatch.setattr(cards, "N_CONCEPTS", 2)
    unknown = replace(LENSES, ablated=LENSES.ablated.where(LENSES.ablated["class"] != 1))
    for card, whole in zip(cards.collect(unknown, 3, ACTIVITIES, AXES, SIMILARITY), DECK, strict=True):
        assert set(card.cost) == {ACTIVITIES[0], ACTIVITIES[2]} and len(card.iou) == 2
        assert card.detects == whole.detects and max(card.iou.values()) == max(whole.iou.values())
        assert ACTIVITIES[1] not in card.matters_for


def test_units_matter_whose_effect_only_a_tenth_exceeds_and_that_cost_something():
    for activity in ACTIVITIES:
        for card in DECK:
            smaller = sum(other.cost[activity] < card.cost[activity] for other in DECK)
            matters = smaller >= cards.MATTERS * len(DECK) and card.cost[activity] > 0
            assert (activity in card.matters_for) == matters
    assert any(c.matters_for for c in DECK)
    for value in (0.1, 0.0):  # ties, and nothing lost
        same = replace(LENSES, ablated=xr.full_like(LENSES.ablated, value))
        assert not any(c.matters_for for c in cards.collect(same, 3, ACTIVITIES, AXES, SIMILARITY))


def test_the_twin_is_the_same_unit_where_there_is_one():
    for card in DECK[N_UNITS:]:  # in conv2 all units can be matched
        assert (card.twin.seed, card.twin.unit) == (7, N_UNITS - 1 - card.unit)
        assert card.twin.similarity == pytest.approx(1) and card.twin.chance < 1
        assert np.array_equal(card.twin.signal, card.signal)
    assert all(c.twin is None for c in deck(made_lenses((3,)))), "a single network"
    flat = deck(made_lenses(scale=1e-9))
    assert {c.status for c in flat} == {"dead", "flat"} and all(c.twin is None for c in flat)


def test_what_a_lens_cannot_do_is_missing_and_units_keep_their_numbers():
    none = deck(replace(LENSES, dissected=None, ablated=None, projected=None))
    for card, whole in zip(none, DECK, strict=True):
        assert card.windows == () and card.iou == card.cost == {} and card.detects == card.matters_for == ()
        assert (card.status, card.twin and card.twin.unit) == (whole.status, whole.twin and whole.twin.unit)
    table = cards.overview(none)
    assert (table["concept"] == "").all() and table["IoU"].isna().all()
    text = page_of(LENSES, none)
    assert all(f'id="of-{card.key}"' in text for card in none)

    some = [2, 5, 11]
    of = {
        name: getattr(LENSES, name).sel(unit=some)
        for name in ("signals", "measured", "dissected", "ablated", "projected")
    }
    views = {}
    for layer, view in LENSES.views.items():
        own = {name: values[some] for name, values in vars(view).items() if name not in ("name", "units")}
        views[layer] = a_layer(layer, 3, **own, units=np.array(some))
    fewer = replace(LENSES, **of, views=views)
    found = deck(fewer)
    assert [card.key for card in found] == [f"{la}-{u}" for la in LAYERS for u in some]
    for card in found:
        whole = DECK[LAYERS.index(card.layer) * N_UNITS + card.unit]
        assert np.array_equal(card.signal, whole.signal) and card.iou == whole.iou and card.cost == whole.cost
        assert set(card.neighbours) <= set(some) and len(card.windows) == len(whole.windows)
    content = json.loads(Page(page_of(fewer, found)).scripts[0])
    assert content["cards"] == [card.key for card in found]
    assert {u["unit"] for u in content["layers"][1]["units"]} == set(some)


def test_another_seed_is_refused():
    with pytest.raises(KeyError, match="no network has seed 4; seeds of this run: 3, 7"):
        cards.collect(LENSES, 4, ACTIVITIES, AXES, SIMILARITY)


def test_lenses_in_numbers_and_their_agreement():
    of = cards.numbers(LENSES, 3, SIMILARITY)
    assert list(of) == list(cards.NUMBERS) and of.loc["conv2", "match"].to_numpy() == pytest.approx(np.ones(N_UNITS))
    assert np.isnan(of.loc[("conv1", 0), "match"])
    assert of.loc[("conv1", 4), "IoU"] == max(DECK[4].iou.values())
    table = cards.agreeing(LENSES, SIMILARITY)
    assert table["correlation"].dropna().between(-1, 1).all() and len(table) == 10 * len(LAYERS)
    same = replace(LENSES, measured=LENSES.measured.assign(nearness=LENSES.measured["activation"] ** 3))
    both = cards.agreeing(same, SIMILARITY).loc["activation, nearness"]
    assert both["correlation"].to_numpy() == pytest.approx([1, 1]) and (both["networks"] == 2).all()


def test_the_overview_says_what_the_cards_say_and_counts_are_those_of_a_loop():
    table = cards.overview(DECK)
    assert list(table.index) == [c.key for c in DECK] and np.isnan(table.loc["conv1-0", "alike"])
    for card in DECK:
        row = table.loc[card.key]
        assert row["detects"].split("; ") == [*card.detects] or not card.detects
        assert row["IoU"] == card.iou[row["concept"]] == max(card.iou.values()) and row["layer"] == card.layer
        assert card.twin is None or (row["match"], row["alike"]) == (card.twin.unit, card.twin.similarity)
    counts = cards.counts(table)
    assert list(counts) == list(LAYERS)
    for layer, of in counts.items():
        mine = [c for c in DECK if c.layer == layer]
        assert of == {
            "units": N_UNITS,
            "usable": sum(c.status == "used" for c in mine),
            "detects": sum(bool(c.detects) for c in mine),
            "matters": sum(bool(c.matters_for) for c in mine),
            "both": sum(bool(c.detects and c.matters_for) for c in mine),
            "matched": sum(c.twin is not None and c.twin.similarity > c.twin.chance for c in mine),
        }


# ------------------------------------------------------------------------------------------------ figures and pages


def page_of(lenses, found) -> str:
    return page.atlas(list(lenses.views.values()), NAMES, COLOURS, caveat="made-up data", cards=found)


class Balanced(html.parser.HTMLParser):
    """Fails where a tag is not closed."""

    VOID = {"meta", "line", "polyline"}

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def cards_in(text: str) -> dict[str, str]:
    """Every card's HTML by its key."""
    return dict(re.findall(r'<template id="of-(.*?)">(.*?)</template>', text, re.DOTALL))


def test_a_card_as_html_is_whole_and_escapes_names():
    named = [*DECK[:2], replace(DECK[2], nearest_activity="<b>&"), *DECK[3:]]
    whole = page_of(LENSES, named)
    shown = cards_in(whole)
    assert json.loads(Page(whole).scripts[0])["cards"] == list(shown) == [card.key for card in named]
    for card in named:
        text = shown[card.key]
        Balanced(text.replace("/>", ">"))
        assert "<b>&" not in text and not Page(text).scripts
        assert f"unit {card.unit}" in text and "nan" not in text.lower()
        assert all(window.activity in text for window in card.windows)
    assert "&lt;b&gt;&amp;" in shown[DECK[2].key]


def test_a_page_without_cards_has_no_search_and_its_title_cannot_break_out():
    text = page.atlas([a_layer()], NAMES, COLOURS, title="</title><script>x()</script>", caveat="made-up <data>")
    assert "<script>x" not in text and "<data>" not in text and len(Page(text).scripts) == 2
    content = Page(text).scripts[0]
    assert '"cards":[]' in content and '"tags":{}' in content


def test_cards_of_units_that_the_page_lacks_are_refused():
    with pytest.raises(ValueError, match="cards of units that no layer of the page has: conv2-0"):
        page.atlas([a_layer("conv1", N_UNITS)], NAMES, COLOURS, cards=DECK)


@pytest.mark.parametrize("which", [0, N_UNITS])
def test_the_figure_of_a_card_draws(which):
    card = DECK[which]
    figure = special.card(card, {c.key: c for c in DECK}, 30.0)
    figure.draw_without_rendering()
    title = figure.get_suptitle()
    assert f"unit {card.unit}" in title and ("dead" in title) == (card.status == "dead")


def curves(ax) -> list[np.ndarray]:
    return [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == TIME]


def test_the_figure_of_a_card_has_all_axes_of_a_unit_that_mixes_them():
    card, by_key = MIXED[N_UNITS + 1], {c.key: c for c in MIXED}
    figure = special.card(card, by_key, 30.0, AXES)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(AXES)
    own, twin, near, real, back = figure.axes[:5]
    assert np.array_equal(curves(own), card.signal) and np.array_equal(curves(twin), card.twin.signal)
    assert np.array_equal(curves(near), np.concatenate([by_key[f"conv2-{u}"].signal for u in card.neighbours]))
    assert np.array_equal(curves(real), np.concatenate([w.signal for w in card.windows]))
    assert np.array_equal(curves(back), np.concatenate([w.projection for w in card.windows]))
    for ax in figure.axes[:5]:
        seen = [line.get_color() for line in ax.lines if len(line.get_ydata()) == TIME]
        assert seen == list(style.COMPONENT_COLOURS[:2]) * (len(seen) // 2)
    assert special.card(DECK[N_UNITS + 1], {c.key: c for c in DECK}, 30.0).legends == []


def test_a_card_as_html_has_all_axes_of_a_unit_that_mixes_them():
    shown = cards_in(page_of(MIXED_LENSES, MIXED))
    for card in MIXED:
        text = shown[card.key]
        Balanced(text.replace("/>", ">"))
        pictures = 1 + bool(card.twin) + 2 * len(card.windows) + len(card.neighbours)
        assert text.count("<figure>") == pictures and text.count("<polyline") == 2 * pictures
        for colour in style.COMPONENT_COLOURS[:2]:
            assert text.count(f'stroke="{colour}"') == pictures


def test_a_card_says_its_unit_and_the_gradient_that_stands_in_for_the_deconvnet():
    signals = LENSES.signals.copy(deep=True)
    signals["signal"].attrs["units"] = "deg/s"
    others = replace(LENSES, signals=signals, projected=LENSES.projected.sel(rule=["gradient"]))
    for found, rule, units in ((DECK, "deconvnet", "G"), (deck(others), "gradient", "deg/s")):
        card, by_key = found[N_UNITS + 1], {c.key: c for c in found}
        figure = special.card(card, by_key, 30.0)
        assert any(f"({rule})" in ax.get_title() for ax in figure.axes)
        assert {ax.get_ylabel() for ax in figure.axes[:4]} == {f"signal [{units}]"}
        text = cards_in(page_of(LENSES, found))[card.key]
        assert f"({rule}, own scale)" in text and f" {units}</text>" in text


# -------------------------------------------------------------------------------------------------- in a browser


def opened(browser, path, text):
    path.write_text(text, encoding="utf-8")
    browser.get(path.as_uri())
    return lambda css: browser.find_elements("css selector", css)


def test_every_card_opens_by_a_click(browser, tmp_path):
    """On the point of a unit, or on its link where it has no place on the map; no error, nothing loaded."""
    found = opened(browser, tmp_path / "cards.html", page_of(LENSES, DECK))
    for card in DECK:
        (place,) = found(f"#unit-{card.key}") or found(f'.lost a[href="#{card.key}"]')
        # points may lie on one another: the event goes to this one, as with the keyboard
        browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", place)
        (shown,) = found("#card article")
        assert shown.get_attribute("id") == f"card-{card.key}" and shown.is_displayed()
        assert browser.execute_script("return location.hash") == f"#{card.key}"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_unit_that_mixes_axes_has_a_line_for_each(browser, tmp_path):
    views = list(MIXED_LENSES.views.values())
    text = page.atlas(views, NAMES, COLOURS, cards=MIXED, axis_names=AXES)
    found = opened(browser, tmp_path / "mixed.html", text)
    found("#unit-conv2-5")[0].click()
    for frame in ("signal", "window"):
        lines = found(f"#{frame} polyline")
        assert [line.get_attribute("stroke") for line in lines] == list(style.COMPONENT_COLOURS[:2])
        assert all(len(line.get_attribute("points").split()) == TIME for line in lines)
    assert found("#axes")[0].text == "A line for each axis: wrist x wrist y"


def test_a_real_click_opens_a_card_and_lists_search_as_a_loop_does(browser, tmp_path):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import Select, WebDriverWait

    # the page changes its card after the click, not during it
    wait = WebDriverWait(browser, 20, ignored_exceptions=[StaleElementReferenceException])
    found = opened(browser, tmp_path / "cards.html", page_of(LENSES, DECK))
    found("#unit-conv2-5")[0].click()  # refused by the driver where something covers it
    wait.until(lambda _: found("#card article#card-conv2-5"))
    neighbour = found('#card a[href^="#conv2-"]')[0]
    wanted = neighbour.get_attribute("href").split("#")[1]
    neighbour.click()
    wait.until(lambda _: found(f"#card article#card-{wanted}"))
    Select(found("#by-detects")[0]).select_by_value("peak")
    Select(found("#by-matters-for")[0]).select_by_value("treadmill running")
    expected = {c.key for c in DECK if "peak" in c.detects and "treadmill running" in c.matters_for}
    assert {a.get_attribute("href").split("#")[1] for a in found("#matches a")} == expected != set()
    placed = sum(np.isfinite(view.positions).all(1).sum() for view in LENSES.views.values())
    assert len(found(".map circle.faded")) == placed - sum(bool(found(f"#unit-{key}")) for key in expected)
