"""`python -m luthier`, which is what torchrun starts."""

import sys

from luthier.cli.app import main

sys.exit(main())
