"""Photos and text to tensors, tensors to groundings: PIL, numpy, torch and transformers processors.

Flat, one-dot imports only.
"""
