/* The menu of exports: links to the graph that is shown, in every form the server writes; a published site writes its own. */
import { get, published, query } from "./api.js";
import { $, download, h } from "./dom.js";
import { asked } from "./controls.js";
import * as state from "./state.js";

const FORMATS = {
  html: "one file, opens offline", svg: "for papers and pages", png: "for slides", json: "read again by saeflow",
  graphml: "networkx, Gephi, yEd", dot: "Graphviz", mermaid: "Markdown", "circuit-tracer": "Neuronpedia's graph viewer",
};

/** A button that opens the list of exports. */
export function exportMenu(info) {
  const links = info.formats.map((format) => {
    const link = h("a", { download: "", "data-format": format }, h("b", {}, format), h("span", {}, FORMATS[format] ?? ""));
    return [format, link];
  });
  const menu = h("details", { class: "menu" }, h("summary", { title: "Write the graph that is shown as a file" }, "Export"), h("ul", {}, ...links.map(([, link]) => h("li", {}, link))));
  const refresh = () => {
    for (const [format, link] of links) link.href = published ? state.address("flow") : `/api/export?${query({ feature: state.value("feature"), ...asked(info), format })}`;
  };
  const write = async (event, format) => {
    event.preventDefault();
    event.stopPropagation();
    menu.open = false;
    const file = await get("/api/export", { feature: state.value("feature"), ...asked(info), format });
    download(file.name, file.text, file.type);
  };
  if (published) for (const [format, link] of links) link.addEventListener("click", (event) => write(event, format));
  state.subscribe(refresh);
  refresh();
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    menu.open = false;
    $("summary", menu).focus();
  });
  menu.addEventListener("click", (event) => { if (event.target.closest("a")) menu.open = false; });
  addEventListener("pointerdown", (event) => { if (!menu.contains(event.target)) menu.open = false; });
  menu.addEventListener("focusout", (event) => { if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false; });
  return menu;
}
