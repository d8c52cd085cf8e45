"""Ratios, surrogates, aggregation and regularisers: the golden batch and published vectors."""

import math

import pytest
import torch

from gflow.objectives.policy_gradient import (
    RATIOS,
    Groups,
    aggregate,
    clipped_weight,
    dynamic_bounds,
    ppo_clip,
    reinforce,
    score_difference,
    step_weights,
)
from gflow.objectives.policy_gradient.regularizers import (
    KL_ESTIMATES,
    constraint,
    log_ratio,
    value_loss,
)
from tests.diamond import close

F64 = torch.float64
OLD = torch.tensor([[0.5, 0.02, 0.9, 0.5], [0.6, 0.3, 0.01, 0.8]], dtype=F64)
RATIO = torch.tensor([[1.3, 3.0, 0.6, 1.0], [0.5, 1.4, 6.0, 0.9]], dtype=F64)
MASK = torch.tensor([[True, True, True, False], [True] * 4])
ADVANTAGE = torch.tensor([[1.0], [-1.0]], dtype=F64)


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def ratio_of(name, log_p):
    return RATIOS[name](log_p, OLD.log(), MASK)


def by_steps(how, surrogate, ratio="token", **settings):
    def loss(log_p):
        each = surrogate(ratio_of(ratio, log_p), log_p)
        return -aggregate(each, step_weights(MASK, how, F64, **settings))

    return loss


def by_sequence(surrogate, ratio):
    def loss(log_p):
        each = surrogate(ratio_of(ratio, log_p), log_p)
        mask = MASK.any(1, keepdim=True)
        return -aggregate(each, step_weights(mask, "seq_mean_token_mean", F64))

    return loss


def clip(low, high, dual=0.0):
    return lambda ratio, log_p: ppo_clip(ratio, ADVANTAGE, low, high, dual)


def dynamic(low, high):
    def surrogate(ratio, log_p):
        return ppo_clip(ratio, ADVANTAGE, *dynamic_bounds(OLD.log(), low, high, 10.0), 10.0)

    return surrogate


def weigh(positive, negative=None):
    negative = negative or positive
    return lambda ratio, log_p: clipped_weight(ratio, ADVANTAGE, log_p, positive, negative)


def scores(of_ratio):
    def loss(log_p):
        of_steps = ratio_of("token", log_p) if of_ratio else log_p
        score = torch.where(MASK, of_steps, 0.0).sum(1) / MASK.sum(1)
        groups = Groups.of(torch.zeros(2, dtype=torch.int64))
        return -score_difference(score, ADVANTAGE[:, 0], groups)[0]

    return loss


THIRD = -0.142857
GOLDEN = {
    "ppo": (by_steps("seq_mean_token_mean", clip(0.8, 1.2)), 0.637500,
            (0, 0, -0.1, 0), (0, 0.175, 0.75, 0.1125)),
    "ppo tokens": (by_steps("token_mean", clip(0.8, 1.28)), 0.848571,
                   (0, 0, -0.085714, 0), (0, 0.2, 0.857143, 0.128571)),
    "constant": (by_steps("const_norm", clip(0.8, 1.2), longest=4), 0.762500,
                 (0, 0, -0.075, 0), (0, 0.175, 0.75, 0.1125)),
    "dual": (by_steps("token_mean", clip(0.8, 1.28, 3.0)), 0.420000,
             (0, 0, -0.085714, 0), (0, 0.2, 0, 0.128571)),
    "dynamic .16": (by_steps("token_mean", dynamic(0.16, 0.2)), 0.557143,
                    (-0.185714, -0.428571, -0.085714, 0), (None, 0.2, 0.857143, 0.128571)),
    "dynamic .12": (by_steps("token_mean", dynamic(0.12, 0.2)), 0.589087,
                    (-0.185714, -0.428571, -0.085714, 0), (0, 0.2, 0.857143, 0.128571)),
    "cispo": (by_steps("token_mean", weigh((0, 5))), -0.972748,
              (-0.185714, -0.428571, -0.085714, 0), (0.071429, 0.2, 0.714286, 0.128571)),
    "cispo both": (by_steps("token_mean", weigh((0.8, 1.28))), -0.189269,
                   (-0.182857, -0.182857, -0.114286, 0), (0.114286, 0.182857, 0.182857, 0.128571)),
    "dispo": (by_steps("token_mean", weigh((0.8, 11), (0, 101))), -1.357058,
              (-0.185714, -0.428571, -0.114286, 0), (0.071429, 0.2, 0.857143, 0.128571)),
    "gspo": (by_sequence(clip(0.7, 1.4), "seq_geo"), 0.033370,
             (-0.221269, -0.221269, -0.221269, 0), (0.174294,) * 4),
    "gspo tokens": (by_steps("seq_mean_token_mean", clip(0.7, 1.4), "seq_geo_token"), 0.033370,
                    (-0.221269, -0.221269, -0.221269, 0), (0.174294,) * 4),
    "product": (by_sequence(clip(0.8, 1.2), "seq_prod"), 1.290000, (0,) * 4, (1.89,) * 4),
    "reinforce": (by_steps("token_mean", lambda ratio, log_p: reinforce(ADVANTAGE, log_p)),
                  -0.193287, (THIRD, THIRD, THIRD, 0), (-THIRD,) * 4),
    "likelihood scores": (scores(False), -0.016554, (-1 / 3, -1 / 3, -1 / 3, 0), (0.25,) * 4),
    "ratio scores": (scores(True), 0.566667, (-0.433333, -1, -0.2, 0),
                     (0.125, 0.35, 1.5, 0.225)),
}  # fmt: skip


def log_policy():
    return (OLD * RATIO).log().requires_grad_()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_batch(name):
    loss, value, *rows = GOLDEN[name]
    log_p = log_policy()
    found = loss(log_p)
    close(found, value)
    found.backward()
    for row, expected in enumerate(rows):
        for step, gradient in enumerate(expected):
            # One entry lies exactly on its bound, where rounding decides.
            if gradient is not None:
                close(log_p.grad[row, step], gradient)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_stands_on_padding_does_not_matter(name):
    loss = GOLDEN[name][0]
    clean = log_policy()
    loss(clean).backward()
    for junk in (5.0, torch.nan, torch.inf):
        spoiled = (OLD * RATIO).log()
        spoiled[0, 3] = junk
        spoiled.requires_grad_()
        found = loss(spoiled)
        found.backward()
        close(found, loss(clean))
        assert torch.equal(spoiled.grad[MASK], clean.grad[MASK])


@pytest.mark.parametrize("name", [name for name in GOLDEN if "scores" not in name])
def test_the_first_update_after_sampling_is_the_score_function(name):
    """At ratio 1 no bound matters: the gradient is A over the weights of the steps."""
    log_p = OLD.log().requires_grad_()
    loss = GOLDEN[name][0]
    value = loss(log_p)
    value.backward()
    plain = OLD.log().requires_grad_()
    how = {
        "constant": "const_norm", "gspo": "seq_mean_token_mean", "ppo": "seq_mean_token_mean",
        "gspo tokens": "seq_mean_token_mean", "product": "seq_mean_token_sum",
    }.get(name, "token_mean")  # fmt: skip
    weights = step_weights(MASK, how, F64, longest=4)
    expected = -aggregate(ADVANTAGE * plain, weights)
    expected.backward()
    close(log_p.grad, plain.grad)
    score = name in ("cispo", "cispo both", "dispo", "reinforce")
    if score:
        close(value, expected)
    elif name == "product":
        close(value, 0.0)
    else:
        close(value, -aggregate(ADVANTAGE.expand(2, 4), weights))


def test_a_table_of_clipped_surrogates():
    ratio = tensor(0.5, 0.9, 1.25, 1.3, 5)
    close(ppo_clip(ratio, torch.ones(5), 0.8, 1.28), tensor(0.5, 0.9, 1.25, 1.28, 1.28))
    close(ppo_clip(ratio, -torch.ones(5), 0.8, 1.28), tensor(-0.8, -0.9, -1.25, -1.3, -5))
    close(ppo_clip(ratio, -torch.ones(5), 0.8, 1.28, 3.0)[-1], -3.0)


def test_four_sided_weights():
    """DISPO weighs by the sign of the advantage; with equal bounds it is CISPO."""
    ratio = tensor(0.5, 0.9, 1.5, 20, 150)

    def multiplier(advantage, bounds):
        log_p = torch.zeros(5, dtype=F64, requires_grad=True)
        clipped_weight(ratio, torch.full((5,), advantage), log_p, *bounds).sum().backward()
        return log_p.grad

    dispo = ((0.8, 11), (0, 101))
    close(multiplier(1.0, dispo), tensor(0.8, 0.9, 1.5, 11, 11))
    close(multiplier(-1.0, dispo), -tensor(0.5, 0.9, 1.5, 20, 101))
    close(multiplier(1.0, ((0, 5), (0, 5))), tensor(0.5, 0.9, 1.5, 5, 5))

    def ppo(advantage):
        log_ratio = ratio.log().requires_grad_()
        ppo_clip(log_ratio.exp(), torch.full((5,), advantage), 0.8, 1.28).sum().backward()
        return log_ratio.grad

    close(ppo(1.0), tensor(0.5, 0.9, 0, 0, 0))
    close(ppo(-1.0), tensor(0, -0.9, -1.5, -20, -150))


def test_dynamic_bounds():
    old = tensor(1, 0.9, 0.64, 0.5, 0.1, 0.01, 0.001)
    low, high = dynamic_bounds(old.log(), 0.16, 0.2)
    close(low, tensor(0.8, 0.7687, 0.5, 0.5, 0.5, 0.5, 0.5), 5e-5)
    close(high, tensor(1.1708, 1.1872, 1.25, 1.3062, 2.0, 5.0, 10.0), 5e-5)
    close((high * (high - 1) * old)[:-1], torch.full((6,), 0.2))
    close((low * (1 - low) * old)[:3], torch.full((3,), 0.16))


def test_ratios_of_whole_sequences():
    log_ratios = tensor([0.3, -0.1, 0.1])
    mask = torch.ones(1, 3, dtype=torch.bool)
    zero = torch.zeros(1, 3, dtype=F64)
    close(RATIOS["seq_geo"](log_ratios, zero, mask), tensor([1.105171]))
    close(RATIOS["seq_prod"](log_ratios, zero, mask), tensor([1.349859]))
    assert torch.isfinite(RATIOS["token"](log_ratios * 1e4, zero, mask)).all()


def test_aggregations():
    values = tensor([2, 9, 9], [1, 1, 1])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    for how, expected in [
        ("seq_mean_token_mean", 1.5), ("token_mean", 1.25), ("seq_mean_token_sum", 2.5),
        ("const_norm", 0.625), ("seq_token_mean_sum", 3.0),
    ]:  # fmt: skip
        close(aggregate(values, step_weights(mask, how, F64, longest=4)), expected)
    # Turns are unbroken runs: [1, 1], [4] and [2, 2, 2].
    values = tensor([1, 1, 9, 4, 9], [2, 2, 2, 9, 9])
    mask = torch.tensor([[True, True, False, True, False], [True, True, True, False, False]])
    close(aggregate(values, step_weights(mask, "rollout_turn_token", F64)), 2.25)
    close(aggregate(values, step_weights(mask, "token_mean", F64)), 2.0)


@pytest.mark.parametrize(
    "how",
    ["seq_mean_token_mean", "token_mean", "seq_mean_token_sum", "const_norm", "seq_token_mean_sum",
     "rollout_turn_token"],
)  # fmt: skip
def test_parts_of_a_batch_add_up_and_empty_rows_are_counted(how):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(9, 6, generator=generator) < 0.6
    mask[4] = False
    values = torch.randn(9, 6, generator=generator, dtype=F64)
    total = mask.sum() if how == "token_mean" else 9
    whole = aggregate(values, step_weights(mask, how, F64, longest=6))
    parts = [
        aggregate(values[rows], step_weights(mask[rows], how, F64, 6, total))
        for rows in (slice(0, 2), slice(2, 7), slice(7, 9))
    ]
    close(sum(parts), whole, 1e-12)
    if how != "token_mean" and how != "seq_token_mean_sum":
        others = torch.arange(9) != 4
        left = aggregate(values[others], step_weights(mask[others], how, F64, longest=6))
        close(whole, left * 8 / 9, 1e-12)


def test_scores_of_positives_and_negatives():
    score = tensor(-0.5, -0.7, -0.4, -1.2).requires_grad_()
    label = tensor(1, 1, -1, -1)
    one = Groups.of(torch.zeros(4, dtype=torch.int64))
    for temperature, expected, gradient in [
        (0.0, 0.2, (0.5, 0.5)), (10.0, 0.192002, (0.519989, 0.480011)),
        (1.0, 0.122047, (0.689974, 0.310026)), (0.1, -0.130719, (0.999665, 0.000335)),
    ]:  # fmt: skip
        score.grad = None
        value, count = score_difference(score, label, one, temperature)
        value.backward()
        close(value, expected)
        close(score.grad, tensor(0.5, 0.5, -gradient[0], -gradient[1]))
        assert count == 1
    # Questions without positives or negatives add nothing and are counted.
    groups = Groups.of(torch.tensor([5, 5, 5, 5, 2, 2, 9]))
    many = torch.cat([score.detach(), tensor(3, -8, 1)]).requires_grad_()
    labels = torch.cat([label, tensor(1, 1, -1)])
    for temperature, expected in [(0.0, 0.2), (1.0, 0.122047)]:
        value, count = score_difference(many, labels, groups, temperature)
        close(value, expected / 3)
        assert count == 3
    value.backward()
    close(many.grad[4:], torch.zeros(3), 0)


@pytest.mark.parametrize("p, grpo, dr", [(0.125, 0.330719, 0.109375), (0.5, 0.5, 0.25),
                                         (0.875, 0.330719, 0.109375)])  # fmt: skip
def test_what_binary_rewards_weigh_questions_by(p, grpo, dr):
    """GRPO by sqrt(p (1 - p)), Dr. GRPO by p (1 - p), score differences by 1."""
    close(math.sqrt(p * (1 - p)), grpo)
    close(p * (1 - p), dr)
    from gflow.objectives.policy_gradient import advantage

    n = 8
    rewards = (torch.arange(n) < round(p * n)).to(F64).unsqueeze(1)
    zeros = torch.zeros(n, dtype=torch.int64)
    score = torch.randn(n, generator=torch.Generator().manual_seed(3), dtype=F64)
    difference, _ = score_difference(score, 2 * rewards[:, 0] - 1, Groups.of(zeros))
    for settings, weight in [({"ddof": 0}, grpo), ({"scale": "none"}, dr)]:
        a = advantage(rewards, zeros, zeros, eps=0.0, **settings)
        close((a * score).mean(), weight * difference)


def test_kl_estimates():
    x = tensor(0.5, -0.5)
    close(KL_ESTIMATES["k1"](x), x)
    close(KL_ESTIMATES["k2"](x), tensor(0.125, 0.125))
    close(KL_ESTIMATES["k3"](x), tensor(0.106531, 0.148721))
    close(KL_ESTIMATES["k3+"](x), tensor(0.106531, 0.148721))
    policy, reference = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.5, 0.3)
    difference = (policy / reference).log()
    expectations = {"k1": 0.223805, "k2": 0.265479, "k3": 0.223805, "k3+": 0.223805}
    towards_policy = tensor(0.346243, -0.220389, -0.125854)
    gradients = {
        "k1": torch.zeros(3), "k2": towards_policy, "k3": policy - reference,
        "k3+": towards_policy,
    }  # fmt: skip
    for name, estimate in KL_ESTIMATES.items():
        close((policy * estimate(difference)).sum(), expectations[name])
        logits = policy.log().requires_grad_()
        log_p = logits.log_softmax(0)
        # Actions drawn from the policy: the weights of the expectation carry no gradient.
        (policy * estimate(log_p - reference.log())).sum().backward()
        close(logits.grad, gradients[name])


def test_log_ratios_stay_finite():
    mask = torch.tensor([True, True, False])
    x = log_ratio(tensor(0, -500, torch.nan), tensor(-500, 0, 0), mask)
    close(x, tensor(20, -20, 0))


def test_a_constraint_is_idle_inside_the_trust_region():
    for divergence, multiplier in [(3e-4, 0.2), (1e-4, 0.0), (-0.311, 0.0)]:
        kl = torch.tensor(divergence, dtype=F64, requires_grad=True)
        constraint(kl, kl, 1e-4, 1e3).backward()
        close(kl.grad, multiplier)


def test_value_losses():
    value, old, target = tensor(1.0, 0.2), tensor(0.0, 0.0), tensor(0.5, 0.5)
    close(value_loss(value, old, target), tensor(0.125, 0.045))
    close(value_loss(value, old, target, 0.1), tensor(0.125, 0.08))
