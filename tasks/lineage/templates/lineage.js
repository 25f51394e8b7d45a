"use strict";
// Hides the cards that lack a word of the search, fades their boxes in the drawing, and opens what holds a match.
const search = document.getElementById("search");
const found = document.getElementById("found");
const nothing = document.getElementById("nothing");
const cards = [...document.querySelectorAll("article.card")].map((card) => ({
  card,
  text: card.textContent.toLowerCase(),
  details: [...card.querySelectorAll("details")].map((part) => [part, part.textContent.toLowerCase()]),
  box: document.querySelector(`.graph [data-card="${card.id}"]`),
}));
const all = found.textContent;

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const { card, text, details, box } of cards) {
    const fits = words.every((word) => text.includes(word));
    card.hidden = !fits;
    if (box) box.classList.toggle("faded", !fits);
    n += fits && !card.classList.contains("environment");
    const holds = (content) => words.every((word) => content.includes(word));
    const isWhole = details.some(([, content]) => holds(content));
    for (const [part, content] of details) {
      const touches = isWhole ? holds(content) : words.some((word) => content.includes(word));
      part.open = words.length > 0 && fits && touches;
    }
  }
  nothing.hidden = cards.some(({ card }) => !card.hidden);
  found.textContent = words.length ? `${n} of ${all}` : all;
  if (window.CSS && CSS.highlights) mark(words);
}

function mark(words) {
  CSS.highlights.clear();
  const ranges = [];
  for (const { card } of words.length ? cards : []) {
    if (card.hidden) continue;
    const walker = document.createTreeWalker(card, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const content = node.data.toLowerCase();
      for (const word of words) {
        for (let at = content.indexOf(word); at >= 0; at = content.indexOf(word, at + word.length)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + word.length);
          ranges.push(range);
        }
      }
    }
  }
  if (ranges.length) CSS.highlights.set("found", new Highlight(...ranges));
}

search.addEventListener("input", filter);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== search) {
    event.preventDefault();
    search.focus();
  }
});
// A link to a card that the search has hidden shows all again.
window.addEventListener("hashchange", () => {
  const card = document.getElementById(location.hash.slice(1));
  if (card && card.hidden) {
    search.value = "";
    filter();
    card.scrollIntoView();
  }
});

// A drawing wider than its frame begins at what was asked about.
const target = document.querySelector(".graph .target rect");
const frame = document.querySelector(".picture .scroll");
if (target) {
  const box = target.getBoundingClientRect();
  const around = frame.getBoundingClientRect();
  frame.scrollLeft += box.left + box.width / 2 - around.left - around.width / 2;
  frame.scrollTop += box.top + box.height / 2 - around.top - around.height / 2;
}
filter();
