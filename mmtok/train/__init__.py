"""Training: the loop and its settings, checkpoints, several processes, fitting of tokenizers."""
