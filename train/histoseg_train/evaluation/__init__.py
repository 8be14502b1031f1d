"""Scoring a model on whole images: tiled as the runtime does it, counted, tabulated, drawn."""
