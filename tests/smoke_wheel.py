"""Run from the wheel alone, outside the repository: nothing may come from the checkout."""

import sys
from pathlib import Path

root = Path(sys.argv[1]).resolve()
import gflow  # noqa: E402

where = Path(gflow.__file__).resolve()
assert root not in where.parents, f"gflow was imported from the checkout: {where}"

import importlib  # noqa: E402
import pkgutil  # noqa: E402

import torch  # noqa: E402

torch.set_num_threads(1)
names = [item.name for item in pkgutil.walk_packages(gflow.__path__, "gflow.")]
for name in names:
    importlib.import_module(name)
assert "gflow.envs.molecules" in names and "gflow.objectives.balance" in names

from gflow.cli import main  # noqa: E402

main(
    "train molecules --rewards qed,sa --steps 3 --out smoke --baseline false "
    "--sampling.batch_size 8 --oracle.workers 0".split()
)
main("sample smoke -n 5 --preference qed=0.5,sa=0.5 -o smoke/more.sdf".split())
assert (Path("smoke") / "report.html").stat().st_size > 100_000
print(f"wheel: {len(names)} modules import, and a run of three steps makes its report")
