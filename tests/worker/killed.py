"""A process of the embedded kind that derives everything it finds; made to be killed: `killed.py URL`."""

import sys
import time

from gradspectra_store import Store
from gradspectra_worker.dispatch import InlineDispatcher

if __name__ == "__main__":
    dispatcher = InlineDispatcher(Store.open(sys.argv[1], migrate=False), sweep_seconds=0.05)
    dispatcher.start()
    print("started", flush=True)
    time.sleep(600)
