"use strict";
addEventListener("DOMContentLoaded", () => {
  const byId = (id) => document.getElementById(id), box = byId("query"), list = byId("found");
  const entries = JSON.parse(byId("entries").textContent);
  const lower = entries.map(([title, heading, text]) => [`${title} ${heading}`.toLowerCase(), text.toLowerCase()]);
  function make(kind, properties, ...children) {
    const node = Object.assign(document.createElement(kind), properties);
    node.append(...children);
    return node;
  }
  function marked(text, words) { // the part of a text around its first hit, hits marked
    const at = Math.min(...words.map((word) => text.toLowerCase().indexOf(word)).filter((i) => i >= 0), text.length);
    const from = at === text.length ? 0 : Math.max(0, at - 60), part = text.slice(from, from + 220);
    const hits = new RegExp(`(${words.map((word) => word.replace(/[^\p{L}\p{N}\s]/gu, "\\$&")).join("|")})`, "i");
    const pieces = part.split(hits).map((piece, i) => (i % 2 ? make("mark", {}, piece) : piece));
    return make("p", {}, from ? "… " : "", ...pieces, from + 220 < text.length ? " …" : "");
  }
  function search() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean), hits = [];
    history.replaceState(null, "", words.length ? `#q=${encodeURIComponent(box.value)}` : "#");
    lower.forEach(([head, text], i) => {
      if (words.length && words.every((word) => head.includes(word) || text.includes(word)))
        hits.push([words.filter((word) => head.includes(word)).length, i]);
    });
    hits.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    byId("count").textContent = words.length ? `${hits.length} found${hits.length > 40 ? ", the first 40:" : ""}` : "";
    list.replaceChildren(...hits.slice(0, 40).map(([, i]) => {
      const [title, heading, text, where] = entries[i], [[run, address], ...others] = where;
      const name = heading && heading !== title ? `${title} › ${heading}` : title;
      const also = others.flatMap(([other, there]) => [" · ", make("a", { href: there }, other)]);
      return make("li", {}, make("a", { href: address }, name), make("small", {}, ` ${run}`, ...also), marked(text, words));
    }));
  }
  box.addEventListener("input", search);
  box.value = decodeURIComponent(location.hash.replace(/^#(q=)?/, ""));
  if (box.value) search();
});
