/* The report of a reproduction: show the claims of one verdict. After results.js. */

/** Buttons above the table of claims, one a verdict that there is, and one for all. */
function addFilter(bar, rows) {
  const outcomes = ["all", ...new Set(rows.map((row) => row.dataset.outcome))];
  const buttons = outcomes.map((outcome) => {
    const button = document.createElement("button");
    const n = outcome === "all" ? rows.length : rows.filter((row) => row.dataset.outcome === outcome).length;
    button.type = "button";
    button.textContent = `${outcome} (${n})`;
    button.addEventListener("click", () => {
      for (const row of rows) row.hidden = outcome !== "all" && row.dataset.outcome !== outcome;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
    button.setAttribute("aria-pressed", String(outcome === "all"));
    return button;
  });
  bar.append(...buttons);
  bar.hidden = false;
}

const filterBar = document.querySelector(".filter");
if (filterBar) addFilter(filterBar, Array.from(document.querySelectorAll("table.claims tbody tr")));
