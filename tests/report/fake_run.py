"""Run folders that look real: drug-like molecules with rewards, metrics, samples, a card."""

import itertools
import json
import math
from pathlib import Path

import torch

from gflow.mdp import Reward
from gflow.store import CandidateStore

CORES = (
    "c1ccc({a})c({b})c1", "c1cnc({a})nc1{b}", "C1CCN({a})CC1{b}", "c1cc2c({a})cccc2n1{b}",
    "O=C(N{a})c1ccc({b})cc1", "C1CN({a})CCN1{b}", "O=C(NC1CCN({a})CC1)N{b}", "c1sc({a})nc1{b}",
)  # fmt: skip
GROUPS = (
    "C", "CC", "C(F)(F)F", "C(=O)OC", "c1ccccc1", "C1CC1", "CCO", "CC(=O)N", "c1ccncc1",
    "S(=O)(=O)C", "C1CCOCC1", "CCN(C)C", "Cc1ccc(F)cc1", "C(C)(C)C", "C#N",
)  # fmt: skip

QED = Reward("qed", "", 0.0, 1.0, description="drug-likeness, Bickerton 2012")
SP3 = Reward("fsp3", "", 0.0, 1.0, description="share of carbon atoms that are sp3")
LOGP = Reward("logp", "log units", -8.0, 0.0, True, "distance of logP from the window 1 to 4")
WEIGHT = Reward("weight", "100 Da", -12.0, 0.0, True, "molecular weight")


def molecules(n: int) -> list[str]:
    """The first `n` different molecules, in an order that mixes cores and groups."""
    from rdkit import Chem

    found: dict[str, None] = {}
    triples = list(itertools.product(CORES, GROUPS, GROUPS))
    for i in range(len(triples)):
        core, a, b = triples[i * 389 % len(triples)]
        mol = Chem.MolFromSmiles(core.format(a=a, b=b))
        if mol is not None:
            found[Chem.MolToSmiles(mol)] = None
        if len(found) == n:
            break
    return list(found)


def score(smiles: str) -> list[float]:
    """qed, fsp3, logp and weight as rewards."""
    from rdkit import Chem
    from rdkit.Chem import QED as qed
    from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors

    mol = Chem.MolFromSmiles(smiles)
    logp = Crippen.MolLogP(mol)
    outside = max(0.0, 1 - logp, logp - 4)
    sp3 = rdMolDescriptors.CalcFractionCSP3(mol)
    return [qed.qed(mol), sp3, -outside, -Descriptors.MolWt(mol) / 100]


def write_metrics(folder: Path, steps: int = 600) -> None:
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(0, steps, 3):
            row = {
                "step": step, "loss": 40 * math.exp(-step / 80) + 0.3 + 0.1 * math.sin(step),
                "log_z": 9 * (1 - math.exp(-step / 150)), "entropy": 3 - step / 400,
                "grad_norm": 5 * math.exp(-step / 200) + abs(math.sin(step * 7)),
                "unique": 0.99 - step / 30000, "oracle_calls": step * 64.0,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 601, "lo')  # the run is under way


CARD = """# fragment molecules with mogfn_pc

Preference-conditional GFlowNet, **MOGFN-PC** ([arXiv 2210.12765](https://arxiv.org/abs/2210.12765)).

| seed | hypervolume |
| --- | ---: |
| 0 | 0.71 |
| 1 | 0.70 |

## Limits

- rewards are cheap surrogates: `qed` is no measurement,
  and neither is the rest
- a molecule on the front may be hard to make </script><script>alert(1)</script>
"""


def molecule_run(folder: Path, n: int = 300, k: int = 2, samples: bool = True) -> Path:
    """A finished run with `n` candidates and `k` of the four rewards."""
    folder.mkdir(parents=True)
    rewards = (QED, SP3, LOGP, WEIGHT)[:k]
    names = molecules(n)
    rows = torch.tensor([score(name)[:k] for name in names], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    # A search that knows its way: good ones tend to come early.
    luck = rows[:, :2].sum(1) + 0.35 * torch.randn(len(names), generator=generator)
    best_first = luck.argsort(descending=True)
    for file, order in (("candidates", best_first), ("baseline", best_first[n // 2 :])):
        with CandidateStore(folder / f"{file}.sqlite", rewards, "1") as store:
            for step, batch in enumerate(order.split(32)):
                weights = torch.rand(len(batch), k, generator=generator).log().neg()
                chosen = [names[i] for i in batch.tolist()]
                store.add(
                    chosen, chosen, rows[batch], preference=weights / weights.sum(1, keepdim=True),
                    source="policy" if file == "candidates" else "random", step=20 * step,
                )  # fmt: skip
            store.add(["C"], ["C"], torch.full((1, k), math.nan), ["timeout: no answer within 5 s"])
    write_metrics(folder)
    (folder / "config.yaml").write_text(
        "task: molecules\nmethod: mogfn_pc\nseed: 0\nrewards: [qed, fsp3]\n"
        "trainer:\n  learning_rate: 0.001\n  steps: 600\n"
    )
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11", "torch": "2.13", "seed": 0})
    )
    (folder / "CARD.md").write_text(CARD)
    (folder / "known.smi").write_text("\n".join(names[:40]) + "\n")
    if samples:
        corners = [[1.0, *[0.0] * (k - 1)], [1 / k] * k, [*[0.0] * (k - 1), 1.0]]
        entries = []
        for corner in corners:
            best = (rows @ torch.tensor(corner, dtype=torch.float64)).argsort(descending=True)[:64]
            entries.append(
                {"preference": corner, "inverse_temperature": 32.0,
                 "objects": [names[i] for i in best.tolist()], "rewards": rows[best].tolist()}
            )  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(entries))
    return folder


def grid_run(folder: Path) -> Path:
    """A run on cells of a grid: tuples, three rewards, one without limits, nothing optional."""
    folder.mkdir(parents=True)
    rewards = [Reward("sum", "", -math.inf, math.inf), Reward("left"), Reward("low")]
    cells = [(x, y) for x in range(8) for y in range(8)]
    values = [[float(x + y), 1 - x / 7, 1 - y / 7] for x, y in cells]
    with CandidateStore(folder / "candidates.sqlite", rewards) as store:
        store.add(cells, [str(cell) for cell in cells], torch.tensor(values))
    return folder
