"""Compiles a StableHLO program with Google's TPU compiler; lab/tpu/lower.py runs it in an environment of its own.

    .tpu/bin/python lab/tpu/compiler.py step.stablehlo v5e:2x2      # prints the counts as a line of JSON

It needs jax[tpu] (requirements-tpu-compile.txt) and neither a TPU nor the other packages of this project.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any


def compiled(path: str, topology: str) -> dict[str, Any]:
    """Compiles a StableHLO file for one core of a topology, such as v5e:2x2; returns the compiler's counts."""
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # its lock guards a chip, and here is none
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    with mlir.make_ir_context():
        module = ir.Module.parse(Path(path).read_text(encoding="utf-8"))
        _drop_copies(module, ir)
        options = compiler.get_compile_options(
            num_replicas=1, num_partitions=1, device_assignment=np.array([[device.id]])
        )
        start = time.perf_counter()
        program = device.client.compile(module, xla_client.DeviceList((device,)), options)
        seconds = time.perf_counter() - start
    cost, memory = program.cost_analysis(), program.get_compiled_memory_stats()
    # What the compiler expects of each instruction stands in the program that it made; a loop's count once.
    cycles = re.findall(r'"estimated_cycles":"(\d+)"', program.hlo_modules()[0].to_string())
    return {
        "device": device.device_kind,
        "compile_seconds": round(seconds, 1),
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "estimated_cycles": sum(map(int, cycles)),
    }


def _drop_copies(module: Any, ir: Any) -> None:
    """Takes out mhlo.copy, which TensorFlow puts before each result and StableHLO does not have."""
    copies = []

    def visit(operation: Any) -> Any:
        if operation.name == "mhlo.copy":
            copies.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for copy in copies:
        copy.results[0].replace_all_uses_with(copy.operands[0])
        copy.erase()


if __name__ == "__main__":
    print(json.dumps(compiled(*sys.argv[1:])))
