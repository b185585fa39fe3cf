// Everything that can be operated, with the name that a screen reader says.
() => Array.from(document.querySelectorAll("a[href], button, input, select, textarea, summary, iframe, [role=button], [tabindex='0']"))
  .filter((e) => e.checkVisibility())
  .map((e) => [e.outerHTML.slice(0, 90), (e.getAttribute("aria-label")
    || Array.from(e.labels ?? [], (label) => label.textContent).join(" ")
    || (e.matches("input, select, textarea, iframe") ? e.title : e.textContent)).trim()])
