"""A process that derives a run again, bit by bit; made to be killed: `killed_deriving_again.py URL RUN FOLDER`."""

import sys
from pathlib import Path

from gradspectra_store import Store, rebuilding, swapping
from gradspectra_worker import derive_again as module

if __name__ == "__main__":
    swapping.STAGE_BYTES, swapping._AT_ONCE, rebuilding.WINDOW_STEPS = 3_000, 2, 250
    module.SHARE = 0.15
    store = Store.open(sys.argv[1], migrate=False)
    print("started", flush=True)
    module.derive_again(store, sys.argv[2], Path(sys.argv[3]))
    print("done", flush=True)
    sys.stdin.read()
