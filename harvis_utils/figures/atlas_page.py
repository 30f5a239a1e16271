"""The atlas as a page of its own, without anything to load: units to point at, and their cards to open by a click."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harvis_utils.metrics.clustering import AtlasError, usable
from harvis_utils.metrics.embedding import AtlasLayer


@dataclass(frozen=True)
class PageCard:
    """What a click on a unit opens: a fragment of HTML, and what it can be found by, group by group."""

    html: str
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)


def interactive_html(
    layers: Sequence[AtlasLayer],
    names: Sequence[str],
    colours: Mapping[str, str],
    piece: int = 10,
    rate_hz: float = 30.0,
    title: str = "Atlas of what the units respond to",
    caveat: str = "",
    cards: Mapping[str, PageCard] | None = None,
    style: str = "",
) -> str:
    """A page of its own, without anything to load: pointing at a unit shows its waveform and its nearest real window.

    ``colours`` maps each of the activity ``names`` to a colour. ``page.html#conv1-3`` opens with unit 3 of conv1.
    Units with NaN positions are left out and counted on the page. With ``cards``, by names like "conv1-3", a click
    opens the unit's card, units without a position get a button below the map, and every group of tags becomes a
    list to search by; ``style`` is what the cards want of CSS. Raises :class:`AtlasError` when a layer's arrays do not
    fit together, and for the card of a unit that no layer has.
    """
    cards = cards or {}
    known = {f"{layer.name}-{u}" for layer in layers for u in range(len(layer.positions))}
    if strangers := sorted(set(cards) - known):
        raise AtlasError(f"cards of units that no layer of the page has: {', '.join(strangers[:5])}")
    groups = list(dict.fromkeys(group for card in cards.values() for group in card.tags))
    content = {
        "names": list(names),
        "colours": [colours[name] for name in names],
        "rate": rate_hz,
        "piece": piece,
        "layers": [_layer_content(layer, len(names)) for layer in layers],
        "cards": {key: card.html for key, card in cards.items()},
        "tags": {group: {key: list(card.tags.get(group, ())) for key, card in cards.items()} for group in groups},
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = _PAGE
    marked = (("STYLE", style), ("TITLE", html.escape(title)), ("CAVEAT", html.escape(caveat)), ("CONTENT", text))
    for mark, value in marked:
        page = page.replace(f"@@{mark}@@", value)
    return page


def _layer_content(layer: AtlasLayer, n_names: int) -> dict:
    n = len(layer.positions)
    for name in ("signals", "activities", "windows", "starts", "offsets", "distances"):
        if len(getattr(layer, name)) != n:
            raise AtlasError(f"layer {layer.name}: {name} has {len(getattr(layer, name))} units, positions has {n}")
    if np.max(layer.activities, initial=-1) >= n_names:
        raise AtlasError(f"layer {layer.name}: activity {np.max(layer.activities)} has no name ({n_names} names)")
    units = np.flatnonzero(np.isfinite(layer.positions).all(1) & usable(layer.signals))

    def numbers(values, digits: int = 4) -> list:
        rounded = np.round(np.asarray(values, np.float64), digits)
        return np.where(np.isfinite(rounded), rounded, None).tolist()

    return {
        "name": layer.name,
        "left_out": [int(u) for u in range(n) if u not in set(units.tolist())],
        "units": [
            {
                "unit": int(u),
                "at": numbers(layer.positions[u]),
                "activity": int(layer.activities[u]),
                "signal": numbers(layer.signals[u]),
                "window": numbers(layer.windows[u]),
                "start": int(layer.starts[u]),
                "offset": int(layer.offsets[u]),
                "distance": numbers(layer.distances[u], 6),
            }
            for u in units
        ],
    }


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>@@TITLE@@</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 1.2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: .3rem 0; }
#caveat { color: #d1495b; font-style: italic; }
#maps { display: flex; flex-wrap: wrap; gap: 1rem; } .map { flex: 1 1 340px; min-width: 0; }
svg { width: 100%; display: block; } .map svg { border: 1px solid #ccc; border-radius: 4px; }
.map circle { stroke: #fff; stroke-width: 1; cursor: pointer; }
.map circle.faded { opacity: .12; } .map circle.chosen { stroke: #000; stroke-width: 2.5; }
.map circle:focus { outline: none; stroke: #000; stroke-width: 2; }
#detail { display: flex; flex-wrap: wrap; gap: 1rem; min-height: 230px; margin-top: .8rem; }
#detail > div { flex: 1 1 340px; } #legend { margin: .7rem 0; }
#legend button { font: inherit; font-size: 13px; border: 0; background: none; cursor: pointer; padding: 1px 6px; }
#legend i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 5px; }
.note { color: #555; font-size: 13px; } text { font-size: 11px; fill: #444; }
#search { display: none; margin: .8rem 0; }
#search select { font: inherit; font-size: 13px; margin: 0 .8rem .3rem .3rem; }
#search label { font-size: 13px; } #matches a, .lost a { font-size: 13px; margin-right: .7rem; }
#card { margin-top: 1rem; } #card:not(:empty) { border-top: 2px solid #1b4965; padding-top: .6rem; }
@@STYLE@@
</style></head><body>
<h1>@@TITLE@@</h1>
<div id="caveat">@@CAVEAT@@</div>
<p class="note">A point is a unit, its colour the activity of the real window nearest to the unit's signal; near points
have similar signals (t-SNE, axes without unit). Point at one (or reach it with the Tab key); a click (or Enter) keeps
it<span id="opens"></span>. Point at an activity to see only its units.</p>
<div id="legend"></div><div id="search"></div><div id="maps"></div>
<div id="detail"><div><h2 id="who">No unit chosen</h2><div id="signal"></div></div>
<div><h2 id="what">&nbsp;</h2><div id="window"></div></div></div>
<p class="note">Shaded: the samples compared. Both frames share one scale.</p>
<div id="card"></div>
<script id="content" type="application/json">@@CONTENT@@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("content").textContent);
const space = "http://www.w3.org/2000/svg";
function draw(parent, kind, attributes, text) {
  const node = document.createElementNS(space, kind);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}
const colour = (a) => (a < 0 ? "#999999" : data.colours[a]);
const called = (a) => (a < 0 ? "none" : data.names[a]);
const title = (name) => name.charAt(0).toUpperCase() + name.slice(1);
const points = new Map(), hasCards = Object.keys(data.cards).length > 0, wanted = {};
let kept = null;

function frame(id, values, begin, limit, stroke) {
  const box = document.getElementById(id), w = 520, h = 200, x0 = 46, y0 = 12, pw = w - x0 - 8, ph = h - y0 - 38;
  box.replaceChildren();
  const svg = draw(box, "svg", { viewBox: `0 0 ${w} ${h}`, role: "img" });
  const x = (t) => x0 + (pw * t) / Math.max(1, values.length - 1), y = (v) => y0 + (ph * (limit - v)) / (2 * limit);
  const from = Math.max(x0, x(begin - 0.5)), to = Math.min(x0 + pw, x(begin + data.piece - 0.5));
  draw(svg, "rect", { x: from, y: y0, width: to - from, height: ph, fill: "#f6c177", opacity: 0.45, class: "piece" });
  draw(svg, "rect", { x: x0, y: y0, width: pw, height: ph, fill: "none", stroke: "#cccccc" });
  for (const v of [-limit, 0, limit]) {
    draw(svg, "line", { x1: x0, x2: x0 + pw, y1: y(v), y2: y(v), stroke: "#dddddd" });
    draw(svg, "text", { x: x0 - 5, y: y(v) + 4, "text-anchor": "end" }, v === 0 ? "0" : v.toPrecision(2));
  }
  const end = (values.length - 1) / data.rate;
  for (const s of [0, end / 2, end]) {
    const anchor = s < end ? "middle" : "end";
    draw(svg, "text", { x: x(s * data.rate), y: y0 + ph + 15, "text-anchor": anchor }, s.toFixed(2));
  }
  draw(svg, "text", { x: x0 + pw / 2, y: h - 6, "text-anchor": "middle" }, "time [s]");
  const side = draw(svg, "text", { x: 0, y: 0, "text-anchor": "middle" }, "acceleration [G]");
  side.setAttribute("transform", `translate(10 ${y0 + ph / 2}) rotate(-90)`);
  const path = values.map((v, t) => (v === null ? "" : `${x(t).toFixed(1)},${y(v).toFixed(1)}`)).join(" ");
  draw(svg, "polyline", { points: path, fill: "none", stroke: stroke, "stroke-width": 2 });
}

function show(key) {
  const found = points.get(key);
  if (!found) return;
  for (const other of points.values()) other.node.classList.remove("chosen");
  found.node.classList.add("chosen");
  const u = found.unit, all = u.signal.concat(u.window).filter((v) => v !== null);
  const limit = 1.08 * Math.max(...all.map(Math.abs), 1e-3);
  document.getElementById("who").textContent = `${title(found.layer)}, unit ${u.unit}: its signal`;
  const far = u.distance === null ? "" : `, d = ${u.distance.toPrecision(3)} G²`;
  document.getElementById("what").textContent = `Nearest real window: ${called(u.activity)}${far}`;
  frame("signal", u.signal, u.start, limit, "#1b4965");
  frame("window", u.window, u.offset, limit, colour(u.activity));
}

function matches(key) {
  return Object.keys(wanted).every((group) => !wanted[group] || (data.tags[group][key] || []).includes(wanted[group]));
}

function only(activity) {
  for (const [key, p] of points)
    p.node.classList.toggle("faded", (activity !== null && p.unit.activity !== activity) || !matches(key));
}

function link(key, text) {
  const node = document.createElement("a");
  node.href = "#" + key;
  node.textContent = text;
  return node;
}

function keep(key) {
  kept = key;
  if (points.has(key)) show(key);
  else {
    for (const p of points.values()) p.node.classList.remove("chosen");
    for (const id of ["signal", "window", "what"]) document.getElementById(id).textContent = "";
    document.getElementById("who").textContent = `${title(key.replace("-", ", unit "))}: without a place, see its card`;
  }
  if (hasCards) document.getElementById("card").innerHTML = data.cards[key] || "";
}

function search() {
  only(null);
  const found = Object.keys(data.cards).filter(matches), box = document.getElementById("matches");
  const asked = Object.values(wanted).some((value) => value);
  box.textContent = asked ? `${found.length} of ${Object.keys(data.cards).length} cards: ` : "";
  if (asked) for (const key of found) box.append(link(key, key.replace("-", " ")), " ");
}

const maps = document.getElementById("maps"), present = new Set();
for (const layer of data.layers) {
  const box = document.createElement("div");
  box.className = "map";
  const head = document.createElement("h2");
  const lost = layer.left_out.length ? ` (${layer.left_out.length} without a signal left out)` : "";
  head.textContent = `${title(layer.name)}: ${layer.units.length} units${lost}`;
  box.appendChild(head);
  maps.appendChild(box);
  const svg = draw(box, "svg", { viewBox: "0 0 400 300" });
  const xs = layer.units.map((u) => u.at[0]), ys = layer.units.map((u) => u.at[1]);
  const width = (all) => Math.max(...all) - Math.min(...all) || 1;
  const scale = (v, all, size) => 18 + ((size - 36) * (v - Math.min(...all))) / width(all);
  for (const u of layer.units) {
    const key = `${layer.name}-${u.unit}`;
    present.add(u.activity);
    const node = draw(svg, "circle", {
      cx: scale(u.at[0], xs, 400).toFixed(1), cy: (300 - scale(u.at[1], ys, 300)).toFixed(1), r: 5.5,
      fill: colour(u.activity), tabindex: 0, id: `unit-${key}`, "aria-label": `${key}, ${called(u.activity)}` });
    points.set(key, { node: node, unit: u, layer: layer.name });
    for (const event of ["mouseenter", "focus"]) node.addEventListener(event, () => show(key));
    node.addEventListener("mouseleave", () => kept && show(kept));
    const choose = () => { history.replaceState(null, "", "#" + key); keep(key); };
    node.addEventListener("click", choose);
    node.addEventListener("keydown", (event) => event.key === "Enter" && choose());
  }
  if (hasCards && layer.left_out.length) {
    const others = document.createElement("p");
    others.className = "note lost";
    others.append("Without a place: ", ...layer.left_out.flatMap((u) => [link(`${layer.name}-${u}`, `${u}`), " "]));
    box.appendChild(others);
  }
}
if (hasCards) {
  const box = document.getElementById("search");
  box.style.display = "block";
  document.getElementById("opens").textContent = " and opens its card below";
  for (const group in data.tags) {
    const label = document.createElement("label"), select = document.createElement("select");
    const values = [...new Set(Object.values(data.tags[group]).flat())].sort();
    for (const value of ["", ...values]) select.add(new Option(value || "any", value));
    select.id = "by-" + group.replaceAll(" ", "-");
    select.addEventListener("change", () => { wanted[group] = select.value; search(); });
    label.append(group, select);
    box.append(label);
  }
  const found = document.createElement("div");
  found.id = "matches";
  box.append(found);
}
for (const a of [...present].sort((p, q) => p - q)) {
  const button = document.createElement("button"), dot = document.createElement("i");
  dot.style.background = colour(a);
  button.append(dot, called(a));
  for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => only(a));
  for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => only(null));
  document.getElementById("legend").appendChild(button);
}
function fromAddress() {
  const key = decodeURIComponent(location.hash.slice(1));
  if (points.has(key) || data.cards[key]) keep(key);
}
addEventListener("hashchange", fromAddress);
fromAddress();
if (!kept && points.size) show(points.keys().next().value);
</script></body></html>
"""
