"""The values that rooms exchange, and the one id space with its grammar."""
