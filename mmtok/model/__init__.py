"""The decoder over one vocabulary: training loss, sampling, scores, and a Llama's weights."""
