"""The server's own step: as its paper writes it, number by number, and kept in checkpoints to the last bit."""

import math

import numpy as np
import pytest

from sahfl.aggregation.server_step import Adam, Momentum
from sahfl.run.folder import Checkpoint, RunFolder

LIKE = {"a.up": np.array([[1.0, -2.0]], np.float32), "b": np.array([0.5], np.float32)}
AGGREGATES = [
    {"a.up": np.array([[1.5, -2.0]], np.float32), "b": np.array([0.25], np.float32)},
    {"a.up": np.array([[1.0, -3.0]], np.float32), "b": np.array([0.75], np.float32)},
    {"a.up": np.array([[0.0, -2.5]], np.float32), "b": np.array([4.0], np.float32)},
]
STEPS = {
    "momentum": Momentum(beta=0.9, learning_rate=0.7),
    "adam": Adam(beta_1=0.9, beta_2=0.99, learning_rate=0.05, floor=1e-3),
}


def numbers(state):
    return [float(value) for tensor in state.values() for value in tensor.ravel()]


def rounds(step, aggregates=AGGREGATES):
    state, memory, found = LIKE, {}, []
    for aggregate in aggregates:
        state, memory = step.step(state, aggregate, memory)
        found.append(numbers(state))
    return found


def test_momentum_adds_a_decaying_sum_of_the_changes():
    w, v, expected = numbers(LIKE), [0.0] * 3, []
    for aggregate in map(numbers, AGGREGATES):
        v = [0.9 * old + (new - now) for old, new, now in zip(v, aggregate, w, strict=True)]
        w = [now + 0.7 * move for now, move in zip(w, v, strict=True)]
        expected.append(w)
    np.testing.assert_allclose(rounds(STEPS["momentum"]), expected, rtol=2e-6)


def test_adam_divides_the_mean_change_by_its_root_mean_square():
    w, m, v, expected = numbers(LIKE), [0.0] * 3, [0.0] * 3, []
    for aggregate in map(numbers, AGGREGATES):
        change = [new - now for new, now in zip(aggregate, w, strict=True)]
        m = [0.9 * old + 0.1 * d for old, d in zip(m, change, strict=True)]
        v = [0.99 * old + 0.01 * d * d for old, d in zip(v, change, strict=True)]
        w = [now + 0.05 * a / (math.sqrt(b) + 1e-3) for now, a, b in zip(w, m, v, strict=True)]
        expected.append(w)
    np.testing.assert_allclose(rounds(STEPS["adam"]), expected, rtol=2e-6)


def test_momentum_without_decay_and_with_rate_one_takes_the_aggregate():
    assert rounds(Momentum(beta=0.0, learning_rate=1.0)) == [numbers(aggregate) for aggregate in AGGREGATES]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_step_keeps_names_shapes_types_and_its_arguments(step):
    before = [numbers(LIKE), numbers(AGGREGATES[0])]
    state, memory = step.step(LIKE, AGGREGATES[0], {})
    step.step(state, AGGREGATES[1], memory)
    for found in (state, *memory.values()):
        assert [(k, v.shape, v.dtype) for k, v in found.items()] == [(k, v.shape, v.dtype) for k, v in LIKE.items()]
    assert [numbers(LIKE), numbers(AGGREGATES[0])] == before


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_state_without_tensors_has_a_step_without_tensors(step):
    state, memory = step.step({}, {}, {})
    assert state == {}
    assert not any(memory.values())


# --- in checkpoints -------------------------------------------------------------------------------------------------


def a_run(path):
    (path / "study.json").write_text("{}")
    return RunFolder(path)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_run_that_goes_on_from_a_checkpoint_steps_to_the_same_bits(tmp_path, step):
    run, state, memory = a_run(tmp_path), LIKE, {}
    for round_, aggregate in enumerate(AGGREGATES, start=1):
        state, memory = step.step(state, aggregate, memory)
        run.commit("cell", Checkpoint(round_, state, {"event": "round", "round": round_}, memory))
        read = RunFolder(tmp_path).last_checkpoint("cell")
        assert (read.round, set(read.memory)) == (round_, set(memory))
        for part, kept in ((state, read.state), *((memory[key], read.memory[key]) for key in memory)):
            assert set(kept) == set(part)
            assert all(kept[name].tobytes() == value.tobytes() for name, value in part.items())
        state, memory = read.state, read.memory
    assert numbers({name: state[name] for name in LIKE}) == rounds(step)[-1]


def test_a_checkpoint_without_memory_has_none_when_read(tmp_path):
    run = a_run(tmp_path)
    run.commit("cell", Checkpoint(1, LIKE, {"event": "round", "round": 1}))
    assert run.last_checkpoint("cell").memory == {}


def test_a_checkpoint_whose_memory_was_changed_is_damaged(tmp_path):
    run = a_run(tmp_path)
    _, memory = STEPS["momentum"].step(LIKE, AGGREGATES[0], {})
    for round_ in (1, 2):
        run.commit("cell", Checkpoint(round_, LIKE, {"event": "round", "round": round_}, memory))
    newest = sorted((tmp_path / "state" / "cell").iterdir())[-1]
    content = newest.read_bytes()
    value = memory["momentum"]["a.up"].tobytes()
    newest.write_bytes(content.replace(value, value[::-1]))
    assert run.last_checkpoint("cell").round == 1
    assert any(record["event"] == "damaged_checkpoint" for record in run.journal())
