"""`python -m luthier`, which is also what torchrun starts."""

import os
import sys

from luthier.cli.app import main
from luthier.cli.launch import worker

with worker(os.environ) as codes:
    codes.append(main())
sys.exit(codes[-1])
