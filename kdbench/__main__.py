"""``python -m kdbench``: the command line, for launchers that start modules (``torchrun -m kdbench run ...``)."""

import sys

from kdbench.cli.parser import main

sys.exit(main())
