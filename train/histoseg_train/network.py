"""The network that is trained beside the one that is saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from histoseg_train.architectures import build_architecture
from histoseg_train.job import Job
from histoseg_train.losses import build_loss
from histoseg_train.optimizers import build_optimizer


@dataclass(frozen=True)
class Network:
    """One network, as two models that hold the same weights after `publish`."""

    model: Any
    """In 32 bits, without loss and optimizer: what is validated and saved."""
    trainer: Any
    """Compiled. It shares the layers of `model`, unless it computes in 16 bits."""
    is_shared: bool

    def publish(self) -> None:
        """Give the model the weights of the trainer."""
        if not self.is_shared:
            self.model.set_weights(self.trainer.get_weights())

    @property
    def variables(self) -> list[Any]:
        """Return the Keras variables that training changes: weights, chance, and what the optimizer knows."""
        layers = [variable for layer in self.trainer.layers for variable in layer.variables]
        return [*layers, *self.trainer.optimizer.variables]


def build_network(job: Job) -> Network:
    """Build what a job names, with its first weights.

    Raises:
        ModelError: The weights of the encoder cannot be had, or do not fit.
        OptionError: The architecture has no pretrained encoder.
    """
    classes = len(job.target.class_names)
    model = build_architecture((None, None, 3), classes, options=job.network, weights=job.weights)
    if job.smooth_um:
        model = smooth_input(model, job.smooth_um / job.target.spacing_um_px)
    body = clone_half(model) if job.fit.mixed_precision else model
    # a second model around the same layers is compiled, so that the saved one carries no optimizer or loss
    trainer = keras.Model(body.inputs, body.outputs)
    # TensorFlow's XLA compiles for minutes on a CPU; JAX without a compiler runs one operation at a time
    compiled = keras.backend.backend() == "jax"
    trainer.compile(build_optimizer(job.fit), build_loss(job.loss), jit_compile=compiled)
    trainer.optimizer.build(trainer.trainable_variables)
    return Network(model, trainer, is_shared=body is model)


def smooth_input(model: Any, sigma_px: float) -> Any:
    """Return a model that smooths its image first, with a Gaussian that training leaves alone.

    It is a layer of the network, so that whatever runs the network smooths alike. What lies outside of a
    patch counts as zero: the outermost `3 sigma` pixels become darker.
    """
    radius = math.ceil(3 * sigma_px)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    image = keras.Input((None, None, 3), name="image")
    layer = keras.layers.DepthwiseConv2D(
        2 * radius + 1, padding="same", use_bias=False, trainable=False, name="smoothing"
    )
    smooth = layer(image)
    layer.set_weights([np.repeat(kernel[..., None, None], 3, axis=2)])
    # `call`, unlike the model itself, leaves no model within the model
    return keras.Model(image, model.call(smooth), name=model.name)


def clone_half(model: Any) -> Any:
    """Return a copy that computes in `float16` and keeps `float32` weights, the same ones.

    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740. Only the last layer, which gives
    probabilities, computes as before.
    """

    def clone_layer(layer: Any) -> Any:
        config = layer.get_config()
        last = layer is model.layers[-1]
        return layer.__class__.from_config(config if last else {**config, "dtype": "mixed_float16"})

    copy = keras.models.clone_model(model, clone_function=clone_layer)
    copy.set_weights(model.get_weights())
    return copy
