"""Heads: what fills in a frame or a segment, given the decoder's hidden state."""
