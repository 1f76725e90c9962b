"""The training job that `gradspectra demo` starts: a small GPT on the bytes of Python's own sources, and its replay."""
