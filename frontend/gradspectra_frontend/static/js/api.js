// Calls of the REST interface. Every failure becomes a Failure that says in words what went wrong and what to do.

const ROOT = "/api/v1";
/** Answers that the next question may not get: none at all, too many at once, a server that starts or is busy. */
const PASSING = [0, 429, 502, 503, 504];
export const AGAIN_MS = 3000;
/** For an answer to come whole; longer than any that is under way takes, sooner than a browser gives up a line that is dead. */
const LONGEST_MS = 120_000;

/** What went wrong: title, detail and remedy of the problem document, or of the network. */
export class Failure extends Error {
  /** @param {{status?: number, title?: string, detail?: string, remedy?: string, type?: string}} problem */
  constructor(problem) {
    super(problem.detail || problem.title || "something went wrong");
    this.status = problem.status ?? 0;
    this.title = problem.title ?? "Something went wrong";
    this.detail = problem.detail ?? "";
    this.remedy = problem.remedy ?? "";
    this.type = problem.type ?? "";
    /** Whether to ask again in AGAIN_MS without being told to. */
    this.passing = PASSING.includes(this.status);
  }
}

/** Address of a call. @param {string} path @param {Record<string, unknown>} [params] */
export function address(path, params = {}) {
  const pairs = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])).toString();
  return ROOT + path + (text ? `?${text}` : "");
}

/** @param {string} path @param {Record<string, unknown>} [params] @param {AbortSignal} [signal] @returns {Promise<any>} */
export const get = (path, params, signal) => call("GET", address(path, params), undefined, signal);

/** @param {"POST" | "PATCH" | "DELETE" | "PUT"} method @param {string} path @param {unknown} [body] @returns {Promise<any>} */
export const send = (method, path, body) => call(method, address(path), body);

/** Answers that were asked for before what shows them was there, by address. @type {Map<string, Promise<any>>} */
const ahead = new Map();

/** Ask now for what `getFirst` is to give. @param {string} path @param {Record<string, unknown>} params */
export function askAhead(path, params) {
  const answer = get(path, params);
  answer.catch(() => {}); // said where the answer is taken
  ahead.set(address(path, params), answer);
}

/** As `get`, but an answer that was asked for ahead is taken, once.
 * @param {string} path @param {Record<string, unknown>} params @param {AbortSignal} signal @returns {Promise<any>} */
export function getFirst(path, params, signal) {
  const url = address(path, params);
  const answer = ahead.get(url) ?? call("GET", url, undefined, signal);
  ahead.delete(url);
  return answer;
}

/** Something has changed since: what was asked for ahead and not taken is old. Whoever hears of changes first calls it,
 * before anything that takes an answer is there. */
export const forgetAhead = () => ahead.clear();

/** @param {string} method @param {string} url @param {unknown} [body] @param {AbortSignal} [signal] */
async function call(method, url, body, signal) {
  const headers = { Accept: "application/json", ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
  const { response, text } = await received(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) }, signal);
  if (response.status === 401 && location.pathname !== "/login") {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  const answer = parsed(text);
  if (!response.ok) throw new Failure({ title: response.statusText, ...(answer ?? {}), status: response.status });
  return answer;
}

/** An answer with its body to the end. @param {string} url @param {RequestInit} what @param {AbortSignal} [signal] */
async function received(url, what, signal) {
  const limit = new AbortController();
  const stop = () => limit.abort();
  const timer = setTimeout(stop, LONGEST_MS);
  if (signal?.aborted) stop();
  signal?.addEventListener("abort", stop);
  try {
    const response = await fetch(url, { ...what, signal: limit.signal });
    return { response, text: await response.text() };
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure({
      title: "The server does not answer",
      detail: "Nothing, or not all of an answer, was received from this address.",
      remedy: "Is `gradspectra serve` still running? The page tries again by itself.",
    });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
}

/** @param {string} text */
function parsed(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}
