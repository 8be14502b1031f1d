"""The exceptions histoseg raises: one base, a few children, each also a standard exception.

Every message says what was found, what was expected and what to do.
"""

from __future__ import annotations


class HistosegError(Exception):
    """Base of every error that histoseg raises on purpose."""


class CardError(HistosegError, ValueError):
    """A model card has an unknown, missing, mistyped or impossible field."""


class ModelError(HistosegError, ValueError):
    """A model file cannot be used: unreadable, without a card, or unlike its card."""


class ProviderError(HistosegError, RuntimeError):
    """A requested execution provider is not installed or does not work here."""


class SlideError(HistosegError, OSError):
    """A slide cannot be opened or read."""


class PushTimeoutError(SlideError, TimeoutError):
    """Nobody took the pixels of a live slide in time."""


class SpacingError(SlideError):
    """A slide's um/px is missing, or too coarse for the model."""


class TruthError(HistosegError, ValueError):
    """A truth mask cannot be read, or does not fit the slide or the model's classes."""


class RoiError(HistosegError, ValueError):
    """A region of interest cannot be read, or holds nothing of the slide."""


class AnnotationError(HistosegError, ValueError):
    """An annotation file cannot be read, or names classes that the model does not have."""


class OptionError(HistosegError, ValueError):
    """An option does not fit the model."""


class CancelledError(HistosegError, RuntimeError):
    """The caller cancelled the run."""


class DeadlineError(CancelledError, TimeoutError):
    """The run was not done by its deadline."""


class OutputError(HistosegError, OSError):
    """A result cannot be written."""


class DataError(HistosegError, ValueError):
    """Training data is missing, unpaired or inconsistent."""


class ParityError(HistosegError, AssertionError):
    """An exported model does not behave like its source."""
