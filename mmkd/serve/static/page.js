// What htmx leaves to do: keep the keyboard's place, and mark what a list did not hold before.
let place = null; // what had the focus
let opener = null; // what opened the similar items
let held = new Map(); // list to what it held

const boxOf = (element) => element.closest("[data-box]")?.dataset.box;
const linksOf = (box) => [...document.querySelectorAll(`[data-box="${box}"] a`)];
const shown = () => new URL(location).searchParams.get("near");
let near = shown();

function remember() {
  const focused = document.activeElement;
  const box = boxOf(focused);
  place = { box, index: linksOf(box).indexOf(focused), follow: focused.dataset.follow, id: focused.id };
  held = new Map();
  for (const item of document.querySelectorAll("[data-box] [data-key]")) {
    const keys = held.get(boxOf(item)) ?? new Set();
    held.set(boxOf(item), keys.add(item.dataset.key));
  }
}

function markNew() {
  for (const item of document.querySelectorAll("[data-box] [data-key]")) {
    const keys = held.get(boxOf(item));
    item.classList.toggle("fresh", Boolean(keys) && !keys.has(item.dataset.key));
  }
}

// To what was asked for, or what went along with the focus, or what took its place.
function refocus() {
  const opened = shown() !== near && shown() !== null;
  const closed = shown() === null && near !== null;
  near = shown();
  if (opened) {
    opener = place.id;
    const title = document.getElementById("near-title");
    title?.focus({ preventScroll: true });
    title?.closest("article").scrollIntoView({ block: "start" });
    return;
  }
  const wanted = closed ? [opener] : (place.follow ?? "").split(" ");
  let next = wanted.map((id) => id && document.getElementById(id)).find(Boolean);
  if (!next && document.activeElement === document.body) {
    const links = linksOf(place.box);
    next = links[Math.min(place.index, links.length - 1)] ?? document.getElementById("history-title");
  }
  next?.focus({ preventScroll: !closed });
}

document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target?.id === "work") remember();
});
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target?.id !== "work" || !place) return;
  markNew();
  refocus();
  place = null;
});
document.addEventListener("htmx:historyRestore", () => {
  near = shown();
});
