"""What changes the weights, by name."""

from __future__ import annotations

from typing import Any

import keras

from histoseg_train.job import FitOptions

# of the gradients of each weight array, all optimizers
CLIP_NORM = 1.0
MOMENTUM = 0.9


def build_optimizer(options: FitOptions) -> Any:
    """Return a Keras optimizer.

    `adamw` (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) and `sgd` (with Nesterov momentum)
    shrink the kernels by `weight_decay`, and no bias or normalisation; `adam` shrinks nothing. With mixed
    precision, the loss is scaled, so that gradients do not vanish in 16 bits.
    """
    optimizer = _build_plain(options)
    if options.optimizer != "adam":
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return keras.optimizers.LossScaleOptimizer(optimizer) if options.mixed_precision else optimizer


def _build_plain(options: FitOptions) -> Any:
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "adam":
        return keras.optimizers.Adam(rate, clipnorm=CLIP_NORM)
    if options.optimizer == "sgd":
        return keras.optimizers.SGD(
            rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay, clipnorm=CLIP_NORM
        )
    return keras.optimizers.AdamW(rate, weight_decay=decay, clipnorm=CLIP_NORM)
