"""torchrun, with less to say: a process that ends by itself has told why, so only one that was killed is named."""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable()
    try:
        main()
    except SignalException:
        sys.exit(1)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            # SIGTERM is torchrun's own way to end the others.
            if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
                name = signal.Signals(-failure.exitcode).name
                print(f"process {rank} of this run was killed by {name}", file=sys.stderr)
        sys.exit(1)
