"""`python -m mmtok` is the command `mmtok`."""

import sys

from mmtok.cli import main

sys.exit(main())
