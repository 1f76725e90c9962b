"""A process that compacts a run in many small rounds; made to be killed: `killed_compacting.py URL RUN`."""

import sys

from gradspectra_store import Store, compaction
from gradspectra_worker.compact import compact

if __name__ == "__main__":
    compaction.CHUNK_BYTES = 6_000
    store = Store.open(sys.argv[1], migrate=False)
    print("started", flush=True)
    compact(store, sys.argv[2])
    print("done", flush=True)
    sys.stdin.read()
