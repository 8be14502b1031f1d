"""The U-Net, under the name it had before it got company."""

from histoseg_train.architectures.unet import UnetOptions, build_unet

__all__ = ["UnetOptions", "build_unet"]
