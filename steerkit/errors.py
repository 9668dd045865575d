"""The errors that steerkit raises on bad input.

Each message is one line: what was expected, what came, what to do. The command line prints it and
exits with code 2 (``--debug`` shows the traceback).
"""

from __future__ import annotations


class SteerkitError(Exception):
    """Base of all errors that a user can mend; also raised for a bad setting."""


class PluginError(SteerkitError):
    """A plugin is missing, ambiguous, or fails to load."""


class ModelError(SteerkitError):
    """A base model can't be loaded, or its blocks can't be found."""


class DataError(SteerkitError):
    """A data set is missing, empty, or lacks a column."""


class VectorError(SteerkitError):
    """A steering vector's file is damaged, or does not fit the model."""


class TrainingError(SteerkitError):
    """Training can't go on (NaN loss); what was learned before is kept."""
