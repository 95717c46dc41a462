"""How long a checkpoint takes to be written, and to be verified and read.

python benchmarks/checkpoint.py FOLDER          where to write 2 GiB: a disk, or /dev/shm to leave the disk out
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from luthier.engine.checkpoint import Checkpoints, State, Tensors, read

PIECE = 2**22
"""Numbers of a tensor: 16 MiB."""


def tensors(count: int) -> dict[str, Tensor]:
    return {f"tensor{number}": torch.randn(PIECE) for number in range(count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    # As in full tuning: the model, its exact weights, and two numbers of state for each.
    model, trained, optimizer = tensors(32), tensors(32), tensors(64)
    place = options.folder / "checkpoints"
    for _ in range(options.rounds):
        store = Checkpoints(place, 1)
        start = time.perf_counter()
        path = store.save(
            State(step=1),
            Tensors(trained, optimizer, {}),
            lambda folder, _: save_file(model, folder / "model.safetensors"),
            best=False,
        )
        saved = time.perf_counter()
        read(path)
        print(f"saved in {saved - start:.2f} s, read in {time.perf_counter() - saved:.2f} s", flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
