// Whether the server has other files of the page by now than those that run here: it was updated and started again.

import { useEffect, useState } from "./html.js";
import { live } from "./live.js";

const FOLDER = /\/static\/([0-9a-f]{16})\//;

/** The folder that a page, or the address of one of its files, names; null where it names none. @param {string} text */
export const folderOf = (text) => FOLDER.exec(text)?.[1] ?? null;

/** The folder that the server's page names now, null where that cannot be read. */
async function served() {
  const answer = await fetch("/", { cache: "no-store" }).catch(() => null);
  return answer?.ok ? folderOf(await answer.text()) : null;
}

/** True from when the connection was lost and stands again with other files behind it. */
export function useUpdated() {
  const [updated, setUpdated] = useState(false);
  useEffect(() => {
    let lost = false;
    return live.onState(async () => {
      if (live.state === "offline") lost = true;
      if (live.state !== "live" || !lost) return;
      lost = false;
      const [own, now] = [folderOf(import.meta.url), await served()];
      if (own && now && own !== now) setUpdated(true);
    });
  }, []);
  return updated;
}
