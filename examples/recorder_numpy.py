"""Train a small network in plain numpy and record it: gradspectra without PyTorch.

Start the server (`gradspectra serve`), then run `python examples/recorder_numpy.py` and open the address it prints.
"""

from __future__ import annotations

import argparse

import gradspectra
import numpy as np

LAYERS = [("layers.0.weight", (64, 8)), ("layers.1.weight", (1, 64))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    weights = [random.normal(0, 1 / np.sqrt(shape[1]), shape) for _, shape in LAYERS]
    rate = 0.05
    with gradspectra.Recorder(
        project="examples", run="numpy", layers=LAYERS, config={"rate": rate}, total_steps=options.steps
    ) as recorder:
        for step in range(1, options.steps + 1):
            inputs = random.normal(size=(32, 8))
            loss, gradients = loss_and_gradients(weights, inputs, np.sin(inputs.sum(1, keepdims=True)))
            squares = [np.square(gradient).sum() for gradient in gradients]
            recorder.record(
                step,
                loss=loss,
                learning_rate=rate,
                grad_norm=np.sqrt(sum(squares)),
                examples=len(inputs),
                layers={
                    "grad_sq": squares,
                    "weight_sq": [np.square(weight).sum() for weight in weights],
                    "update_sq": [np.square(rate * gradient).sum() for gradient in gradients],
                },
                spectra={LAYERS[0][0]: gradients[0]} if step % 20 == 0 else None,
            )
            weights = [weight - rate * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    print(recorder.url or "no server: the records are kept, see `gradspectra sync`")


def loss_and_gradients(
    weights: list[np.ndarray], inputs: np.ndarray, targets: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    hidden = np.tanh(inputs @ weights[0].T)
    errors = hidden @ weights[1].T - targets
    back = errors @ weights[1] * (1 - np.square(hidden))
    return float(np.square(errors).mean() / 2), [back.T @ inputs / len(inputs), errors.T @ hidden / len(inputs)]


if __name__ == "__main__":
    main()
