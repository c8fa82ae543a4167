"""Errors by what may follow: a retry, or a person."""

from __future__ import annotations


class TransientError(Exception):
    """The same work may succeed a little later: the network, another process, a lost worker."""


class PermanentError(Exception):
    """The same work fails again until a person changes something, whatever caused it."""
