"use strict";
// A click on a heading sorts its table; a second click turns the order round. Cells without a value stay last.
document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (!button) return;
  const heading = button.parentElement;
  const column = heading.cellIndex;
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
  const body = heading.closest("table").tBodies[0];
  const sign = direction === "ascending" ? 1 : -1;
  const rank = (cell) => (cell.className === "missing" ? 2 : "key" in cell.dataset ? 0 : 1);
  const compare = (a, b) => {
    const [left, right] = [a.cells[column], b.cells[column]];
    if (rank(left) !== rank(right)) return rank(left) - rank(right);
    if (rank(left) === 0) return sign * (Number(left.dataset.key) - Number(right.dataset.key));
    return sign * left.textContent.localeCompare(right.textContent);
  };
  body.append(...[...body.rows].sort(compare));
});
