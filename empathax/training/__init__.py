"""The training run: state, compiled steps, optimizers, frozen references, metrics."""
