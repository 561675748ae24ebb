"""Importing a published checkpoint beside reading its files: seconds, and memory beyond what the
params take.

Both are done in a process of its own, in turn, from the page cache and, where the machine lets it
be emptied, from the disk.

    python -m experiments.bench.import_checkpoint --preset=pythia-1b --dtype=float16
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.bench import measure

CHUNK = 16 << 20


def write_folder(folder: Path, preset: str, dtype: str) -> None:
    """A folder of random numbers in the shapes of a preset, two bytes or four a number, in files of
    at most 1 GB.
    """
    import jax
    import numpy as np

    from rlhf_jax.models import gpt_neox
    from rlhf_jax.pretrained import export

    model = gpt_neox.make(gpt_neox.PRESETS[preset])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape, np.float32).astype(dtype), shapes
    )
    export.save(folder, model, params, token_ids={}, dtype=dtype, max_file_bytes=1 << 30)


def read(folder: Path) -> dict[str, Any]:
    """Reads the folder's files whole, a chunk at a time."""
    began, size, buffer = time.perf_counter(), 0, bytearray(CHUNK)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                size += count
    return {"seconds": time.perf_counter() - began, "bytes": size}


def load(folder: Path) -> dict[str, Any]:
    """Imports the folder as float32 params, and says how much memory it took at its height beyond
    them.
    """
    import jax

    from rlhf_jax.devices import mesh
    from rlhf_jax.pretrained.folders import Folder
    from rlhf_jax.stages.common import pretrained_models

    one = mesh.make_mesh(mesh.Config())
    opened = Folder(folder)
    model = pretrained_models.model_of(opened)
    jax.block_until_ready(jax.numpy.zeros(1))
    before = measure.peak_resident_megabytes()
    began = time.perf_counter()
    params = jax.block_until_ready(pretrained_models.load_policy(str(folder), model, one))
    seconds = time.perf_counter() - began
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    beyond = measure.peak_resident_megabytes() - before - sum(sizes) / 1e6
    mapped = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    return {
        "seconds": seconds,
        "params_megabytes": sum(sizes) / 1e6,
        "largest_tensor_megabytes": max(sizes) / 1e6,
        "peak_beyond_params_megabytes": beyond,
        "of_it_mapped_files_at_most": mapped,
    }


def alone(side: str, folder: Path, cold: bool) -> dict[str, Any]:
    """One side in a process of its own."""
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")
    command = [
        sys.executable,
        "-m",
        "experiments.bench.import_checkpoint",
        f"--side={side}",
        f"--folder={folder}",
    ]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def case(folder: Path, repeats: int, cold: bool) -> dict[str, Any]:
    """The sides in turn; the least of each."""
    found: dict[str, list[dict[str, Any]]] = {"read": [], "load": []}
    for _ in range(repeats):
        for side, results in found.items():
            results.append(alone(side, folder, cold))
    best = {
        side: min(results, key=lambda result: result["seconds"]) for side, results in found.items()
    }
    ratio = best["load"]["seconds"] / best["read"]["seconds"]
    return {
        "case": "from disk" if cold else "from the page cache",
        "load_to_read": round(ratio, 3),
        **best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="pythia-1b")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--side", choices=("read", "load"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"read": read, "load": load}[options.side](options.folder)))
        return
    load_average = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch) / options.preset
        write_folder(folder, options.preset, options.dtype)
        cases = [case(folder, options.repeats, cold=False)]
        with contextlib.suppress(OSError):  # only root may empty the page cache
            cases.append(case(folder, options.repeats, cold=True))
    shape = {"preset": options.preset, "dtype": options.dtype}
    measure.report(
        "import_checkpoint", [shape | found for found in cases], load_average, options.output
    )


if __name__ == "__main__":
    main()
