"""gfnx as a contestant of `benchmarks/speed.py`: `python with_gfnx.py SETTING`.

Runs in an environment where gfnx, equinox and optax are installed. gfnx brings environments and the
rollout and leaves the loss to its user; the whole loop of iterations is one compiled program, as in
its own training scripts.
"""

from __future__ import annotations

import sys

import equinox as eqx
import gfnx
import jax
import jax.numpy as jnp
import optax
from turns import SETTINGS, Setting, serve


class RandomTable(gfnx.TFBind8RewardModule):
    """A reward between 0.001 and 1 for each sequence of 8 letters."""

    def init(self, rng_key, dummy_state):
        return {"rewards": jax.random.uniform(jax.random.key(0), (4**8,), minval=1e-3)}


def problem(setting: Setting):
    """Environment, width of the input, and what turns observations into the network's input."""
    if setting.problem == "tfbind8":
        env = gfnx.TFBind8Environment(RandomTable())
    elif setting.problem == "bits":
        env = gfnx.BitseqEnvironment(gfnx.BitseqRewardModule(120, 8, 60), n=120, k=8)
    else:
        reward = gfnx.GeneralHypergridRewardModule(R0=0.1, R1=0.5, R2=2.0)
        env = gfnx.HypergridEnvironment(reward, dim=4, side=setting.side)
        return env, 4 * setting.side, lambda seen: seen
    # Without the token that starts every sequence; the symbols come first, then padding.
    symbols, padding = env.nchar, env.pad_token

    def codes(seen):
        tokens = jnp.where(seen[..., 1:] == padding, symbols, seen[..., 1:])
        return jax.nn.one_hot(tokens, symbols + 1).reshape(*seen.shape[:-1], -1)

    return env, env.max_length * (symbols + 1), codes


def main(name: str) -> None:
    setting = SETTINGS[name]
    env, width, codes = problem(setting)
    params = env.init(jax.random.key(1))
    learned = setting.problem == "grid"
    n_forward, n_backward = env.action_space.n, env.backward_action_space.n
    network = eqx.nn.MLP(
        width, n_forward + learned * n_backward, 256, depth=2, key=jax.random.key(2)
    )
    weights, shape = eqx.partition(network, eqx.is_array)
    trained = {"network": weights, "log_z": jnp.zeros(())}
    rates = {"network": optax.adam(1e-3), "log_z": optax.adam(0.1)}
    optimizer = optax.multi_transform(rates, {"network": "network", "log_z": "log_z"})

    def outputs(weights, seen):
        """Logits of P_F and P_B for observations [..., F]."""
        rows = codes(seen)
        flat = jax.vmap(eqx.combine(weights, shape))(rows.reshape(-1, width))
        both = flat.reshape(*rows.shape[:-1], -1)
        return both[..., :n_forward], both[..., n_forward:]

    def over_time(function):
        return jax.vmap(function, in_axes=1, out_axes=1)

    def taken(logits, invalid, actions):
        log_p = jax.nn.log_softmax(gfnx.utils.mask_logits(logits, invalid), axis=-1)
        return jnp.take_along_axis(log_p, actions[..., None], axis=-1)[..., 0]

    def loss(trained, batch, log_reward):
        forward, backward = outputs(trained["network"], batch.obs)
        invalid = over_time(lambda s: env.get_invalid_mask(s, params))(batch.state)
        log_pf = jnp.where(batch.pad, 0.0, taken(forward, invalid, batch.action))
        before = jax.tree.map(lambda x: x[:, :-1], batch.state)
        after = jax.tree.map(lambda x: x[:, 1:], batch.state)
        undone = jax.vmap(
            lambda s, a, t: env.get_backward_action(s, a, t, params), in_axes=1, out_axes=1
        )(before, batch.action[:, :-1], after)
        invalid = over_time(lambda s: env.get_invalid_backward_mask(s, params))(after)
        logits = backward[:, 1:] if learned else jnp.zeros(invalid.shape)
        log_pb = jnp.where(batch.pad[:, :-1], 0.0, taken(logits, invalid, undone))
        residual = trained["log_z"] + log_pf.sum(1) - log_pb.sum(1) - log_reward
        return jnp.square(residual).mean()

    def iteration(_, carry):
        trained, memory, key, _ = carry
        key, drawn = jax.random.split(key)
        batch, seen = gfnx.utils.forward_rollout(
            rng_key=drawn,
            num_envs=setting.batch_size,
            policy_fn=lambda key, obs, weights: (outputs(weights, obs)[0], {}),
            policy_params=trained["network"],
            env=env,
            env_params=params,
        )
        gradient = jax.grad(loss)(trained, batch, seen["log_gfn_reward"])
        updates, memory = optimizer.update(gradient, memory, trained)
        length = seen["trajectory_length"].astype(jnp.float32).mean()
        return optax.apply_updates(trained, updates), memory, key, length

    @jax.jit
    def iterate(n, carry):
        return jax.lax.fori_loop(0, n, iteration, carry)

    carry = [(trained, optimizer.init(trained), jax.random.key(3), jnp.zeros(()))]

    def run(n: int) -> None:
        carry[0] = jax.block_until_ready(iterate(n, carry[0]))

    serve(setting, run, lambda: float(carry[0][3]))


if __name__ == "__main__":
    main(sys.argv[1])
