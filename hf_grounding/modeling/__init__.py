"""Networks: torch and transformers only.

Flat, and files import each other with one dot, so that saved checkpoints are self-contained.
"""
