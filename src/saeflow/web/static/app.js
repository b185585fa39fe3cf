/* Starts the page: asks what is there, builds the views, and shows the one that the address names. */
import { get, published } from "./api.js";
import { buildControls } from "./controls.js";
import { $, all, problem } from "./dom.js";
import { seedAt, startFlow } from "./flow.js";
import { startHelp } from "./help.js";
import { readFeature } from "./panel.js";
import { startResults } from "./results.js";
import { searchBox } from "./search.js";
import * as state from "./state.js";

// What goes wrong is kept where a test can see it.
addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
addEventListener("unhandledrejection", (event) => { document.documentElement.dataset.error = String(event.reason); });
addEventListener("securitypolicyviolation", (event) => { document.documentElement.dataset.error = `${event.violatedDirective} ${event.blockedURI}`; });

const TITLES = { flow: "", steer: "Steer", text: "Text", results: "Results" };

async function start() {
  let info;
  try {
    info = await get("/api/info");
  } catch (error) {
    $("#main").replaceChildren(problem(error));
    return;
  }
  $("#release").textContent = [info.release, info.model && info.model !== info.release ? info.model : ""].filter(Boolean).join(" · ");
  if (published) for (const part of all(`[data-needs="model"]${info.results.length ? "" : ", #views a, #results"}`)) part.remove();
  state.start();
  const box = searchBox($("#search"), { label: "Search features", placeholder: "Search words or an id", hint: "/", picks: info.picks, choose: seedAt });
  buildControls($("#controls"), info);
  startFlow(info, readFeature);
  if (!published) await startModelViews(info);
  if (!published || info.results.length) startResults(info);
  startHelp(info);
  wireChrome();
  state.subscribe(showView);
  showView({ view: state.view() }, { view: "" });
  if (!state.value("feature")) await openPick(info, box);
  else state.update({});
  watchPicks(info, box);
}

/** The steering bench and the text view: a published site has no model, and no files for them. */
async function startModelViews(info) {
  const [{ startBench }, { startRun }, { startText }] = await Promise.all(["plan", "steer", "text"].map((name) => import(`./${name}.js`)));
  let changed = () => {};
  startBench(info, () => changed());
  changed = startRun(info);
  changed();
  startText(info);
}

/** The first graph is one worth a look, so that the page never opens empty. */
async function openPick(info, box) {
  const found = info.picks[0]?.feature ?? (await get("/api/search", { q: `${info.layers[Math.floor(info.layers.length / 2)]}/res`, limit: 1 })).hits[0]?.feature;
  if (found) state.update({ feature: found, node: found });
  else box.input.focus();
}

/** Picks are looked for after the start: ask again until they are there. */
async function watchPicks(info, box) {
  for (let i = 0; !info.picks_ready && i < 40; i++) {
    await new Promise((done) => setTimeout(done, 1500));
    const again = await get("/api/info").catch(() => null);
    if (!again) return;
    box.picks = info.picks = again.picks;
    info.picks_ready = again.picks_ready;
  }
}

function showView(now, before) {
  for (const section of all("main > .view")) section.hidden = section.id !== now.view;
  for (const link of all("#views a")) {
    const to = link.dataset.view;
    link.href = state.address(to);
    if (to === now.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.documentElement.dataset.view = now.view;
  const title = now.view === "flow" ? state.value("feature") : TITLES[now.view];
  document.title = [title, "saeflow"].filter(Boolean).join(" · ");
  if (before.view && before.view !== now.view) scrollTo(0, 0);
}

function wireChrome() {
  // Links to "#…" are answered here, so that one step of the history is one step of the page.
  addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const [view, said = ""] = link.getAttribute("href").slice(1).split("?");
    state.update(Object.fromEntries(new URLSearchParams(said)), { push: true, to: view });
  });
  $("#skip").addEventListener("click", () => ($(`#frame .node[tabindex="0"]`) ?? $("#main")).focus());
  const fold = $("#controls-fold");
  fold.addEventListener("click", () => {
    const open = fold.getAttribute("aria-expanded") !== "true";
    fold.setAttribute("aria-expanded", String(open));
    $("#controls").classList.toggle("open", open);
  });
}

start();
