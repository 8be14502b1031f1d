"""Strategies that make a network of a file, one to a module; `histoseg_export.load` holds their list."""
