"""Run Keras tissue-segmentation models, exported to ONNX, on whole-slide images."""

__version__ = "0.1.0"
