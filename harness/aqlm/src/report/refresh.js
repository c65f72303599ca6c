"use strict";
// Asks the server every two seconds whether the runs have changed, and shows the new page in place of the old
// one. What is unfolded stays unfolded, and sorted tables stay sorted.
let shown = null;
async function refresh() {
  const news = await fetch("/state", { cache: "no-store" });
  const state = await news.text();
  if (!news.ok || state === shown) return;
  if (shown !== null) {
    const answer = await fetch("/", { cache: "no-store" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const open = [...document.querySelectorAll("details[open]")].map((one) => one.id);
    const sorted = [...document.querySelectorAll("th[aria-sort]")].map((one) =>
      [one.closest("table").id, one.cellIndex, one.getAttribute("aria-sort")]);
    document.querySelector("main").replaceWith(page.querySelector("main"));
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    for (const [id, column, direction] of sorted) {
      const button = document.getElementById(id)?.rows[0]?.cells[column]?.querySelector("button");
      if (!button) continue;
      button.click();
      if (direction === "descending") button.click();
    }
  }
  shown = state;
}
setInterval(() => refresh().catch(() => {}), 2000);
