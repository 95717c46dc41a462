"""What every test on a CUDA device needs before the device is first used."""

import os

# Matrix products repeat themselves bit for bit only with a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
