
"use strict";
(() => {
  const body = document.querySelector("tbody");
  const columns = [...document.querySelectorAll("thead th")];
  const words = new Intl.Collator(undefined, { numeric: true });

  // what has no value comes last, whichever way the rest is sorted
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (isNaN(a) || isNaN(b) ? words.compare(a, b) : a - b);
  };

  const sort = (index) => {
    const sign = columns[index].getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const value = (row) => row.cells[index].dataset.value;
    const rows = [...body.rows].sort((a, b) => compare(value(a), value(b), sign));
    body.append(...rows);
    for (const column of columns) column.removeAttribute("aria-sort");
    columns[index].setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  };

  columns.forEach((column, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...column.childNodes);
    button.addEventListener("click", () => sort(index));
    column.append(button);
  });
})();
