"""Giving models away: a checkpoint that carries its own code."""

from .saving import save_with_code

__all__ = ["save_with_code"]
