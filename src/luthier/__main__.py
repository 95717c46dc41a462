"""`python -m luthier`, which is also what torchrun starts."""

import os
import sys

from luthier.cli.app import main
from luthier.cli.launch import leave_exit_code

code = main()
leave_exit_code(code, os.environ)
sys.exit(code)
