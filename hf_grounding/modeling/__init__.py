"""Networks: torch and transformers only. Flat, files import each other with one dot, so that saved checkpoints are self-contained."""
