"""Names for the array types that cross module borders."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB, `(height, width, 3)`, or a batch of it."""

Labels = NDArray[np.uint8]
"""Class indices, `(height, width)`."""

Mask = NDArray[np.bool_]
"""`(height, width)`."""

Floats = NDArray[np.float32]
"""Weights, probabilities."""

Shares = NDArray[np.uint8]
"""Probabilities in steps of 1/255, `(height, width, classes)`."""
