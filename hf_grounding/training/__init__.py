"""Training and evaluation: recipes, features computed once, trainers over transformers' Trainer, measured results."""
