"""Turn a Keras segmentation model into one self-describing ONNX file that is proven to behave the same."""
