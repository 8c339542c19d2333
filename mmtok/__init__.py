"""One decoder-only transformer over text, speech, images and jets, as one stream of tokens.

Importing this package imports no torch; each room (`mmtok.tokenizers`, `mmtok.model`, ...) is
imported by name.
"""

__version__ = "0.2.0"
