"""Error feedback: over the rounds nothing is lost but what the last one left over."""

from dataclasses import replace

import numpy as np
import pytest

from sahfl.federation.site.feedback import with_feedback
from sahfl.federation.site.kept import KEPT
from sahfl.payload import Header, layout, pack, steps, unpack

HEADER = Header(study="abc", stage="finetune", method="cp_lora-r2", fold=1, round=1, base="def")
ROUNDED = pytest.mark.parametrize("encoding", ["float16", "int8"])
SHAPES = {"b": (5,), "a.up": (4, 3)}


def change(round_, names=tuple(SHAPES), size=1e-3):
    rng = np.random.default_rng(round_)
    return {name: (size * rng.standard_normal(SHAPES[name])).astype(np.float32) for name in names}


def at(round_, **changed):
    return replace(HEADER, round=round_, **changed)


def arrived(state, encoding):
    """What the server makes of it."""
    body = pack(state, encoding).tobytes()
    return unpack(body, layout(state), like=state, encoding=encoding, tensor_steps=steps(state))


def files(folder):
    return sorted(path.name for path in (folder / "feedback").iterdir())


@ROUNDED
def test_the_sum_of_what_was_sent_tracks_the_sum_of_the_changes(tmp_path, encoding):
    sent, wanted, plain = (dict.fromkeys(SHAPES, 0.0) for _ in range(3))
    for round_ in range(1, 41):
        own = change(round_)
        received = arrived(with_feedback(tmp_path, at(round_), own, encoding), encoding)
        rounded = arrived(own, encoding)
        for name in SHAPES:
            sent[name] = sent[name] + received[name].astype(np.float64)
            plain[name] = plain[name] + rounded[name].astype(np.float64)
            wanted[name] = wanted[name] + own[name].astype(np.float64)
    last = steps(own) if encoding == "int8" else [2.0**-11 * np.abs(own[name]).max() for name in own]
    for name, step in zip(own, last, strict=True):
        assert np.abs(sent[name] - wanted[name]).max() <= 1.1 * step  # of one round, not of forty
        assert np.abs(sent[name] - wanted[name]).mean() < 0.5 * np.abs(plain[name] - wanted[name]).mean()


def test_numbers_below_half_a_step_are_sent_in_the_end(tmp_path):
    own, sent = {"a": np.array([1.0, 0.001], np.float32)}, 0.0
    for round_ in range(1, 101):
        sent += arrived(with_feedback(tmp_path, at(round_), own, "int8"), "int8")["a"][1]
    assert sent == pytest.approx(0.1, abs=0.005)
    assert arrived(own, "int8")["a"][1] == 0


@ROUNDED
def test_a_round_that_is_asked_twice_gives_the_same_bytes(tmp_path, encoding):
    for round_ in (1, 2, 3):
        first = pack(with_feedback(tmp_path, at(round_), change(round_), encoding), encoding).tobytes()
        kept = {name: (tmp_path / "feedback" / name).read_bytes() for name in files(tmp_path)}
        again = pack(with_feedback(tmp_path, at(round_), change(round_), encoding), encoding).tobytes()
        assert first == again
        assert kept == {name: (tmp_path / "feedback" / name).read_bytes() for name in files(tmp_path)}


def test_a_server_that_falls_back_a_round_gets_the_same_bytes(tmp_path):
    sent = {r: pack(with_feedback(tmp_path, at(r), change(r), "int8"), "int8").tobytes() for r in range(1, 7)}
    for round_ in (5, 6):
        assert pack(with_feedback(tmp_path, at(round_), change(round_), "int8"), "int8").tobytes() == sent[round_]


def test_in_float32_nothing_is_rounded_added_or_kept(tmp_path):
    own = change(1)
    assert with_feedback(tmp_path, at(1), own, "float32") is own
    assert not (tmp_path / "feedback").exists()


def test_a_round_that_the_site_missed_is_bridged(tmp_path):
    with_feedback(tmp_path, at(1), change(1), "int8")
    left = {name: value - arrived(change(1), "int8")[name] for name, value in change(1).items()}
    sent = with_feedback(tmp_path, at(9), change(9), "int8")
    assert all((sent[name] == change(9)[name] + left[name]).all() for name in sent)


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x" * 50)], ids=["gone", "damaged"])
def test_without_the_file_of_its_only_round_the_change_itself_is_sent(tmp_path, damage):
    with_feedback(tmp_path, at(1), change(1), "int8")
    (file,) = (tmp_path / "feedback").iterdir()
    damage(file)
    sent = with_feedback(tmp_path, at(2), change(2), "int8")
    assert all((sent[name] == value).all() for name, value in change(2).items())


def test_what_was_left_before_a_damaged_round_is_not_sent_twice(tmp_path):
    for round_ in (1, 2):
        with_feedback(tmp_path, at(round_), change(round_), "int8")
    newest = (tmp_path / "feedback" / files(tmp_path)[-1]).resolve()
    newest.write_bytes(b"damaged")
    sent = with_feedback(tmp_path, at(3), change(3), "int8")
    assert all((sent[name] == value).all() for name, value in change(3).items())


def test_a_file_of_another_layout_is_not_used(tmp_path):
    with_feedback(tmp_path, at(1), change(1), "int8")
    other = tmp_path / "other"
    with_feedback(other, at(1), {"x": np.ones(3, np.float32) / 3}, "int8")
    (tmp_path / "feedback" / files(tmp_path)[0]).write_bytes((other / "feedback" / files(other)[0]).read_bytes())
    sent = with_feedback(tmp_path, at(2), change(2), "int8")
    assert all((sent[name] == value).all() for name, value in change(2).items())


def test_old_files_are_removed(tmp_path):
    for round_ in range(1, 12):
        with_feedback(tmp_path, at(round_), change(round_), "int8")
        assert len(files(tmp_path)) == min(round_, KEPT)
    assert [name[-17:-12] for name in files(tmp_path)] == ["00009", "00010", "00011"]


def test_where_factors_take_turns_each_has_its_own_left_over(tmp_path):
    left = {}
    for round_ in range(1, 9):
        names = ("a.up",) if round_ % 2 else ("b",)
        own = change(round_, names)
        sent = with_feedback(tmp_path, at(round_), own, "int8")
        for name in names:
            expected = own[name] + left[name] if name in left else own[name]
            assert (sent[name] == expected).all()
            left[name] = sent[name] - arrived(sent, "int8")[name]
    assert len(files(tmp_path)) == 2 * KEPT


def test_a_new_run_of_the_same_study_starts_without_the_old_one_s_left_over(tmp_path):
    for round_ in range(1, 6):
        with_feedback(tmp_path, at(round_), change(round_), "int8")
    with_feedback(tmp_path, at(1), change(1), "int8")
    assert len(files(tmp_path)) == 1


def test_a_server_that_goes_back_finds_nothing_of_the_rounds_behind_it(tmp_path):
    for round_ in range(1, 7):
        with_feedback(tmp_path, at(round_), change(round_, ("a.up",) if round_ % 2 else ("b",)), "int8")
    with_feedback(tmp_path, at(3), change(3, ("a.up",)), "int8")
    assert sorted(int(name[-17:-12]) for name in files(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize(
    "other", [{"fold": 2}, {"method": "../../etc"}, {"study": "x"}, {"stage": "pretrain"}], ids=str
)
def test_another_training_shares_nothing_and_no_name_becomes_a_path(tmp_path, other):
    with_feedback(tmp_path, at(1), change(1), "int8")
    sent = with_feedback(tmp_path, at(2, **other), change(2), "int8")
    assert all((sent[name] == value).all() for name, value in change(2).items())
    assert len(files(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["feedback"]
