import pytest
import torch

from gflow.conditions import (
    Conditions,
    InverseTemperature,
    PromptConditions,
    simplex_lattice,
    thermometer,
)
from gflow.seeding import derive_seed, generator


def test_thermometer_vectors():
    codes = thermometer(torch.tensor([0.3, 1.0], dtype=torch.float64), 0, 1, 5)
    assert codes[0].tolist() == pytest.approx([1, 0.2, 0, 0, 0])
    assert codes[1].tolist() == pytest.approx([1, 1, 1, 1, 0])


def test_thermometer_is_monotone_and_injective():
    values = torch.linspace(0, 1, 101, dtype=torch.float64)
    total = thermometer(values, 0, 1, 16).sum(-1)
    assert (total.diff() > 1e-6).all()


def test_gamma_encoding_ends_at_the_95_percent_quantile():
    assert InverseTemperature("gamma", 16, 1).high == pytest.approx(23.097, abs=1e-3)


@pytest.mark.parametrize(
    "text, mean",
    [("4", 4), ("uniform:1..3", 2), ("loguniform:1..4", 3 / 1.386294), ("gamma:16..1", 16)],
)
def test_inverse_temperatures_have_the_right_mean(text, mean):
    draws = InverseTemperature.parse(text).sample(20_000, generator(0), torch.float64)
    assert draws.mean().item() == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("text", ["4", "uniform:1..3", "gamma:16..1"])
def test_inverse_temperatures_print_as_they_are_written(text):
    assert str(InverseTemperature.parse(text)) == text


@pytest.mark.parametrize("text", ["", "x", "uniform:3", "uniform:3..1", "-2", "gauss:1..2", "1..2"])
def test_bad_inverse_temperatures_are_refused(text):
    with pytest.raises(ValueError, match="inverse temperature"):
        InverseTemperature.parse(text)


def test_dirichlet_preferences_lie_on_the_simplex_and_are_reproducible():
    conditions = Conditions(3, InverseTemperature("uniform", 1, 8), concentration=1.5)
    draws = [conditions.sample(5000, generator(3)) for _ in range(2)]
    assert torch.equal(draws[0].preference, draws[1].preference)
    preference = draws[0].preference
    assert torch.allclose(preference.sum(1), torch.ones(5000))
    # Var of a symmetric Dirichlet's coordinate: (1/K)(1 - 1/K) / (K a + 1).
    assert preference.var(0).mean().item() == pytest.approx(2 / 9 / 5.5, rel=0.1)
    assert draws[0].encoding.shape == (5000, conditions.encoding_size) == (5000, 3 * 16 + 32)


def test_preferences_that_do_not_sum_to_one_are_refused():
    conditions = Conditions(2, concentration=1.0)
    bad = torch.tensor([[0.5, 0.5], [0.7, 0.7]])
    with pytest.raises(ValueError, match=r"row 1.*sum to 1"):
        conditions.make(bad, torch.ones(2))
    with pytest.raises(ValueError, match="needs a preference over 2"):
        conditions.make(None, torch.ones(2))


def test_simplex_lattice():
    lattice = simplex_lattice(3, 5)
    assert len(lattice) == 15
    assert torch.allclose(lattice.sum(1), torch.ones(15, dtype=torch.float64))


def test_streams_of_one_seed_differ():
    seeds = {derive_seed(0, name) for name in ("a", "b", 0, 1)} | {derive_seed(1, "a")}
    assert len(seeds) == 5


def test_prompts_are_drawn_without_repeats_while_there_are_enough():
    prompts = PromptConditions(5, n_rewards=2)
    drawn = prompts.sample(12, torch.Generator().manual_seed(0), torch.float64)
    number = drawn.encoding[:, 0].long()
    assert drawn.encoding.shape == (12, 1) and drawn.encoding.dtype == torch.float64
    assert [sorted(number[i : i + 5].tolist()) for i in (0, 5)] == [list(range(5))] * 2
    assert len(set(number[10:].tolist())) == 2 and number[:5].tolist() != number[5:10].tolist()
    assert drawn.preference is None and (drawn.inverse_temperature == 1).all()


def test_prompts_keep_while_preferences_change():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    asked = PromptConditions(2, 2, rows, Conditions(2, concentration=1.0))
    drawn = asked.sample(6, torch.Generator().manual_seed(0))
    assert asked.with_preference and drawn.encoding.shape == (6, asked.encoding_size)
    wanted = torch.tensor([[0.25, 0.75]]).expand(6, -1)
    one = torch.ones(6)
    again = asked.prefer(drawn, wanted, one)
    assert torch.equal(again.encoding[:, :2], drawn.encoding[:, :2])
    assert torch.equal(again.preference, wanted)
    assert torch.equal(again.encoding[:, 2:], asked.preferences.make(wanted, one).encoding)
    plain = PromptConditions(2, rows=rows)
    drawn = plain.sample(4, torch.Generator().manual_seed(0))
    again = plain.prefer(drawn, None, torch.full((4,), 3.0))
    assert torch.equal(again.encoding, drawn.encoding) and again.inverse_temperature[0] == 3
