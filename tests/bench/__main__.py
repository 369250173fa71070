"""Runs every benchmark: ``python -m tests.bench [name …]``.

Nothing here gates anything: figures are printed with the command that made them.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import tests.bench


def main(names: list[str]) -> int:
    """Run the named benchmarks, all without names; each module has ``main()``."""
    known = [
        module.name.removeprefix("bench_")
        for module in pkgutil.iter_modules(tests.bench.__path__)
        if module.name.startswith("bench_")
    ]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {unknown[0]!r} (there are: {', '.join(known)})", file=sys.stderr)
        return 2
    for name in names or known:
        print(f"\n== {name}: python -m tests.bench.bench_{name}", flush=True)
        importlib.import_module(f"tests.bench.bench_{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
