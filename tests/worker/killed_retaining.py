"""A process that retires a run in many small transactions; made to be killed: `killed_retaining.py URL RUN`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gradspectra_store import Store, retiring
from gradspectra_worker.retain import retain
from store.retaining import KEPT, LATER

if __name__ == "__main__":
    retiring.CHUNK_BYTES = 500
    store = Store.open(sys.argv[1], migrate=False)
    print("started", flush=True)
    retain(store, sys.argv[2], KEPT, LATER)
    print("done", flush=True)
    sys.stdin.read()
