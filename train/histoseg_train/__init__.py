"""Train Keras tissue-segmentation models: data, augmentation, architectures, losses, fit."""
