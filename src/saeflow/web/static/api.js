/* Answers: a server's, or of the files of a published site. Every failure is an ApiError: a sentence, and what to do. */

/** Whether this page is a published site: files alone, no server that computes, no model. */
export const published = "published" in document.documentElement.dataset;
const files = published ? import("./site/source.js") : null;

/** What the server refused, or that it does not answer. */
export class ApiError extends Error {
  /**
   * @param {string} sentence what failed, with the values
   * @param {string} todo what to do
   * @param {number} status the HTTP status, 0 without an answer
   */
  constructor(sentence, todo, status) {
    super(sentence);
    this.todo = todo;
    this.status = status;
  }
}

/** Whether a request was given up by this page itself. */
export function gaveUp(error) {
  return error?.name === "AbortError";
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, credentials: "same-origin" });
  } catch (error) {
    if (gaveUp(error)) throw error;
    throw new ApiError("The server does not answer.", "Look at the terminal where `saeflow serve` runs, start it again there, and open the address it prints.", 0);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const said = await answer.json().catch(() => ({}));
  const sentence = said.error || `The server answered ${answer.status} to ${new URL(answer.url).pathname}.`;
  let todo = said.what_to_do || "";
  if (!todo && answer.status === 401) todo = "Open the address that `saeflow serve` printed: it carries the token.";
  if (!todo && answer.status === 429) todo = "Another request is at work. Try again in a moment.";
  return new ApiError(sentence, todo, answer.status);
}

/** `values` as a query, without what is empty. */
export function query(values) {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "") said.set(name, String(value));
  }
  return said.toString().replaceAll("%2F", "/").replaceAll("%2C", ",");
}

/** GET as JSON; of a published site, what the server would say. */
export async function get(path, values = {}, signal = undefined) {
  if (files) return (await files).answer(path, values, signal);
  const said = query(values);
  return (await ask(said ? `${path}?${said}` : path, { signal })).json();
}

/** The address of the page of a results folder. */
export const resultsPage = (id) => (published ? `results/${encodeURIComponent(id)}/index.html` : `/results/${encodeURIComponent(id)}`);

/** The address of a table of a results folder. */
export const resultsFile = (id, file) => (published ? `results/${encodeURIComponent(id)}/tables/${encodeURIComponent(file.name)}` : `/results/${encodeURIComponent(id)}/files/${file.n}`);

function posted(body, signal) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

/** POST JSON, answer as JSON. */
export async function post(path, body, signal = undefined) {
  return (await ask(path, posted(body, signal))).json();
}

/** POST JSON, answer as a file: its name and its data. */
export async function postForFile(path, body) {
  const answer = await ask(path, posted(body));
  return { name: answer.headers.get("content-disposition").split('"')[1], data: await answer.blob() };
}

/** POST JSON, answer as objects line by line while they come. */
export async function* stream(path, body, signal) {
  const answer = await ask(path, posted(body, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.trim()) yield JSON.parse(line);
    }
    if (rest.trim()) yield JSON.parse(rest);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One request at a time: a new one gives up the one before. */
export function latest() {
  let running = null;
  return {
    /** The signal of a new request. */
    next() {
      running?.abort();
      running = new AbortController();
      return running.signal;
    },
    stop() { running?.abort(); },
  };
}
