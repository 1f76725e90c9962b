"""Report numbers from a training loop that is not PyTorch's: linear regression in numpy, through Recorder."""

import gradspectra
import numpy as np

rng = np.random.default_rng(0)
inputs = rng.normal(size=(1024, 32))
targets = inputs @ rng.normal(size=32) + 0.1 * rng.normal(size=1024)
weights, rate = np.zeros(32), 0.05

recorder = gradspectra.Recorder(project="quickstart", run="numpy-regression", layers=[("weights", (32,))])
for step in range(1, 501):
    rows = rng.integers(len(inputs), size=64)
    error = inputs[rows] @ weights - targets[rows]
    gradient = 2 * inputs[rows].T @ error / len(rows)
    weights -= rate * gradient
    squares = {"grad_sq": [gradient @ gradient], "weight_sq": [weights @ weights]}
    recorder.record(step, loss=float(np.mean(error**2)), lr=rate, grad_norm=np.linalg.norm(gradient), layers=squares)
recorder.close()
print(f"the run is at {recorder.url}")
