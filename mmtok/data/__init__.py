"""Tasks, preparation of raw signals, token files, batches."""
