"""The commands of `histoseg-train`, one a file."""
