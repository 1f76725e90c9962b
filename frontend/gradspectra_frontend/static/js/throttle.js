// How often a figure is drawn: at once when it was quiet, then at most once in a while, and never twice at a time.

/**
 * Run an asynchronous job on demand. The first demand runs at once; demands during a run, or sooner than `pause()`
 * ms after its start, are gathered into one run afterwards, so the last demand is always served.
 * @param {() => Promise<void>} job
 * @param {{pause?: () => number, now?: () => number, later?: (f: () => void, ms: number) => unknown}} [options]
 */
export function gathered(job, { pause = () => 300, now = () => performance.now(), later = setTimeout } = {}) {
  let begun = -Infinity;
  let running = false;
  let asked = false;
  let waiting = false;
  let stopped = false;

  async function run() {
    waiting = false;
    if (stopped) return;
    begun = now();
    running = true;
    asked = false;
    try {
      await job();
    } finally {
      running = false;
      if (asked) demand();
    }
  }

  function demand() {
    if (stopped || waiting) return;
    asked = true;
    if (running) return;
    const wait = begun + pause() - now();
    if (wait <= 0) void run();
    else {
      waiting = true;
      later(() => void run(), wait);
    }
  }

  return {
    demand,
    stop() {
      stopped = true;
    },
  };
}

let last = Promise.resolve();

/**
 * Resolves in a frame of its own for each caller, in the order of the calls: what one draws is seen before the next
 * one begins.
 * @param {(f: () => void) => unknown} [frame]
 */
export function turn(frame = requestAnimationFrame) {
  const mine = last;
  last = mine.then(() => new Promise((resolve) => void frame(() => setTimeout(resolve))));
  return mine;
}
