"""The proxy of docking scores: our network against layers of PyTorch Geometric."""

import pickle

import numpy as np
import pytest
import torch
from rdkit import Chem

from gflow.envs.molecules import MoleculeOracle
from gflow.envs.molecules.seh import _SHAPES, SEHProxy, graph_of
from tests.envs.data import table

SMILES = [
    "O=C(NC1CCCCC1)NC12CC3CC(CC(C3)C1)C2",
    "CC(=O)Oc1ccccc1C(=O)O",
    "C#CCN1CCN(S(=O)(=O)c2cccc(Br)c2)CC1",
    "N",
    "[Na+].[Cl-]",
    "[Cl-].C[NH3+]",
    "c1ccc2[nH]ccc2c1",
    "CP(C)(=O)I",
]


def random_arrays(seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = [0.4 / max(shape[-1], 4) ** 0.5 * 2 for shape in _SHAPES]
    return [
        (torch.randn(shape, generator=generator) * scale).numpy()
        for shape, scale in zip(_SHAPES, scales, strict=True)
    ]


def straightforward(arrays, mols, dtype):
    """The network with one weight matrix for each bond."""
    from torch_geometric.nn import NNConv, Set2Set

    w = [torch.tensor(array, dtype=dtype) for array in arrays]
    act = torch.nn.LeakyReLU()
    edge = torch.nn.Sequential(torch.nn.Linear(4, 128), act, torch.nn.Linear(128, 4096))
    conv, gru = NNConv(64, 64, edge, aggr="mean"), torch.nn.GRU(64, 64)
    pool, last = Set2Set(64, processing_steps=3), torch.nn.Linear(128, 1)
    first = torch.nn.Linear(71, 64)
    names = [
        (first, ("weight", "bias"), w[0:2]),
        (conv, ("lin.weight", "bias"), w[2:4]),
        (edge, ("0.weight", "0.bias", "2.weight", "2.bias"), w[4:8]),
        (gru, ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), w[8:12]),
        (pool.lstm, ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), w[16:20]),
        (last, ("weight", "bias"), w[20:22]),
    ]
    for module, keys, values in names:
        module.to(dtype)
        for key, value in zip(keys, values, strict=True):
            module.get_parameter(key).data = value
    answers = []
    for mol in mols:
        rows = []
        for atom in mol.GetAtoms():
            row = torch.zeros(71, dtype=dtype)
            row[
                "H C N O F".split().index(atom.GetSymbol()) if atom.GetSymbol() in "HCNOF" else 5
            ] = 1
            row[9] = atom.GetIsAromatic()
            hybrid = str(atom.GetHybridization())
            if hybrid in ("SP", "SP2", "SP3"):
                row[10 + ("SP", "SP2", "SP3").index(hybrid)] = 1
            row[13] = atom.GetTotalNumHs()
            row[14 + atom.GetAtomicNum() - 1] = 1
            rows.append(row)
        ends, kinds = [], []
        for bond in mol.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            kind = torch.zeros(4, dtype=dtype)
            kind[("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC").index(str(bond.GetBondType()))] = 1
            ends += [(i, j), (j, i)]
            kinds += [kind, kind]
        if not ends:
            ends, kinds = [(0, 0)], [torch.zeros(4, dtype=dtype)]
        with torch.no_grad():
            out = act(first(torch.stack(rows)))
            h, index = out[None], torch.tensor(ends).T
            for _ in range(12):
                message = act(conv(out, index, torch.stack(kinds)))
                out, h = gru(message[None], h)
                out = out[0]
            pooled = pool(out, torch.zeros(len(out), dtype=torch.int64))
            answers.append(last(pooled)[0, 0])
    return torch.stack(answers)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-10)], ids=str
)
def test_it_is_the_network_with_one_matrix_for_each_bond(dtype, tolerance):
    mols = [Chem.MolFromSmiles(text) for text in SMILES]
    graphs = [graph_of(mol) for mol in mols]
    arrays = random_arrays()
    ours = SEHProxy(arrays, dtype)(graphs)
    theirs = straightforward(arrays, mols, dtype)
    assert ours.dtype == dtype and theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_batch_is_its_molecules():
    proxy = SEHProxy(random_arrays(1), torch.float64)
    graphs = [graph_of(Chem.MolFromSmiles(text)) for text in SMILES]
    alone = torch.cat([proxy([graph]) for graph in graphs])
    torch.testing.assert_close(proxy(graphs), alone)
    assert torch.equal(proxy(graphs[::-1]).flip(0).sort().indices, alone.sort().indices)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_says_the_same():
    graphs = [graph_of(Chem.MolFromSmiles(text)) for text in SMILES]
    here = SEHProxy(random_arrays(), torch.float64)(graphs)
    there = SEHProxy(random_arrays(), torch.float64, "cuda")(graphs)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here)


def test_elements_and_bonds_it_never_saw():
    assert graph_of(Chem.MolFromSmiles("[U]")) is None
    assert graph_of(Chem.MolFromSmiles("CN->[Fe]")) is None
    assert graph_of(Chem.MolFromSmiles("[Ba]")) is not None


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{f"p{i:02}": array for i, array in enumerate(random_arrays())})
    return path


def test_as_a_reward(weights):
    oracle = MoleculeOracle.parse(f"seh:{weights},qed")
    (reward, _) = oracle.rewards
    assert (reward.name, reward.low, reward.high) == ("seh", 0.0, 1.5)
    values = oracle([*SMILES, "C1CC", "[U]"])
    assert values[:8, 0].isfinite().all() and values[8].isnan().all() and values[9, 0].isnan()
    raw = SEHProxy.load(weights)([graph_of(Chem.MolFromSmiles(text)) for text in SMILES]) / 8
    torch.testing.assert_close(values[:8, 0], raw.clamp(1e-4, 1.5).double())
    again = pickle.loads(pickle.dumps(oracle))
    assert torch.equal(again(SMILES), oracle(SMILES)) and again.version == oracle.version
    other = weights.with_name("other.npz")
    np.savez(other, **{f"p{i:02}": array for i, array in enumerate(random_arrays(5))})
    weights.write_bytes(other.read_bytes())
    assert MoleculeOracle.parse(f"seh:{weights},qed").version != oracle.version


def test_files_that_are_no_weights(tmp_path, weights):
    with pytest.raises(ValueError, match=r"there is no file .*missing\.npz"):
        MoleculeOracle.parse(f"seh:{tmp_path}/missing.npz")
    with pytest.raises(ValueError, match=r"needs a file of weights, as in seh:weights\.npz"):
        MoleculeOracle.parse("seh")
    (tmp_path / "text.npz").write_text("no numbers")
    with pytest.raises(ValueError, match=r"text\.npz: "):
        MoleculeOracle.parse(f"seh:{tmp_path}/text.npz")
    np.savez(tmp_path / "few.npz", p00=np.zeros((64, 71)))
    with pytest.raises(ValueError, match="not the weights of the sEH proxy: array 1 of 1"):
        MoleculeOracle.parse(f"seh:{tmp_path}/few.npz")
    wrong = random_arrays()
    wrong[3] = wrong[3][:5]
    with pytest.raises(ValueError, match="array 3 of 22"):
        SEHProxy(wrong)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickled.npz", p00=objects)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        SEHProxy.load(tmp_path / "pickled.npz")


def test_values_of_the_published_weights():
    oracle = MoleculeOracle.parse(f"seh:{table('seh_proxy_weights.npz')}")
    mols = [Chem.MolFromSmiles(text) for text in SMILES]
    with np.load(table("seh_proxy_weights.npz")) as file:
        theirs = straightforward([file[name] for name in sorted(file.files)], mols, torch.float32)
    values = oracle(SMILES)[:, 0]
    torch.testing.assert_close(values, (theirs / 8).clamp(1e-4, 1.5).double(), rtol=1e-4, atol=1e-5)
    known = [0.48087, 0.31124, 0.31003, 1e-4, 0.17129, 0.20411, 0.15916, 1e-4]
    assert values.tolist() == pytest.approx(known, abs=2e-5)
