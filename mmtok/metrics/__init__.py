"""What is measured of signals, per modality."""
