// Asks for what the address shows first while the rest of the page is still on its way.

import { parse } from "./address.js";
import { askAhead } from "./api.js";
import { firstCalls } from "./figure_calls.js";
import { plotly } from "./plotly.js";
import { themeNow } from "./theme.js";

const calls = firstCalls(parse(location.pathname, location.search), themeNow(), innerWidth);
for (const [path, params] of calls) askAhead(path, params);
if (calls.length) void plotly().catch(() => {}); // said by the figure that needs it
