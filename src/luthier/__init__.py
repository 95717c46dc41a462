"""Luthier: take a language model through its whole working life on your own machines."""

__version__ = "0.1.0"

import logging

# transformers imports torchao where it is installed, which then speaks of kernels that nothing here uses.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
