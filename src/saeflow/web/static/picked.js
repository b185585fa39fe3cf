/* The features that were picked for a plan: kept in the address, so that they are shared with it. */
import { announce } from "./dom.js";
import * as state from "./state.js";

/** The picked features as a set of ids. */
export const planned = () => new Set(state.list("plan"));

/** Set the picked features. */
export function setPlanned(ids) {
  state.update({ plan: Array.from(new Set(ids)).join(",") });
  dispatchEvent(new Event("planned"));
}

/** Add a feature to the plan, or take it out. */
export function togglePlanned(id) {
  const now = planned();
  const there = now.delete(id);
  if (!there) now.add(id);
  setPlanned(now);
  announce(there ? `${id} is no longer in the plan.` : `${id} is in the plan: ${now.size} in all.`);
}
