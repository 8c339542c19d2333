"""Files: atomic writes, strict readers, names, progress, messages."""
