"""`python -m histoseg_train`, the same as `histoseg-train`."""

from histoseg_train.cli import main

main(prog_name="histoseg-train")
