"""Train a small network in JAX and record it: the numbers of all layers are computed in the jitted step.

`pip install jax`, start the server (`gradspectra serve`), then run `python examples/recorder_jax.py`.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

import gradspectra
import jax
import jax.numpy as jnp
import numpy as np

RATE = 0.2
SPECTRA_EVERY = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    parameters = initial(jax.random.key(0), (8, 64, 64, 1))
    random = np.random.default_rng(0)
    with gradspectra.Recorder(
        project="examples", run="jax", layers=named(parameters), config={"rate": RATE}, total_steps=options.steps
    ) as recorder:
        for step in range(1, options.steps + 1):
            inputs = random.normal(size=(32, 8)).astype(np.float32)
            targets = np.sin(inputs.sum(1, keepdims=True))
            parameters, gradients, numbers = train_step(parameters, inputs, targets)
            numbers = jax.device_get(numbers)  # the one copy to the host
            kernel = jax.device_get(gradients["dense_1"]["kernel"]) if step % SPECTRA_EVERY == 0 else None
            recorder.record(
                step,
                loss=numbers["loss"],
                learning_rate=RATE,
                grad_norm=np.sqrt(numbers["layers"]["grad_sq"].sum()),
                examples=len(inputs),
                layers=numbers["layers"],
                spectra=None if kernel is None else {"dense_1.kernel": kernel},
            )
    print(recorder.url or "no server: the records are kept, see `gradspectra sync`")


def initial(key: Any, widths: tuple[int, ...]) -> dict[str, dict[str, jax.Array]]:
    keys = jax.random.split(key, len(widths) - 1)
    return {
        f"dense_{i}": {"kernel": jax.random.normal(keys[i], (m, n)) / jnp.sqrt(m), "bias": jnp.zeros(n)}
        for i, (m, n) in enumerate(pairwise(widths))
    }


def named(parameters: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each layer, in the order that JAX goes through the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(parameters)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape) for path, leaf in leaves]


def squares(tree: Any) -> jax.Array:
    """Sum of squares of each layer: (L,)."""
    return jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree_util.tree_leaves(tree)])


def mean_error(parameters: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    *hidden, last = (parameters[name] for name in sorted(parameters))
    for layer in hidden:
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"])
    return jnp.square(inputs @ last["kernel"] + last["bias"] - targets).mean() / 2


@jax.jit
def train_step(parameters: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
    loss, gradients = jax.value_and_grad(mean_error)(parameters, inputs, targets)
    updates = jax.tree_util.tree_map(lambda gradient: -RATE * gradient, gradients)
    parameters = jax.tree_util.tree_map(jnp.add, parameters, updates)
    layers = {"grad_sq": squares(gradients), "weight_sq": squares(parameters), "update_sq": squares(updates)}
    return parameters, gradients, {"loss": loss, "layers": layers}


if __name__ == "__main__":
    main()
