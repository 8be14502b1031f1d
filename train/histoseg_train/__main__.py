"""`python -m histoseg_train`."""

from histoseg_train.cli import main

main()
