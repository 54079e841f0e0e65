from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.seeds import derive_seed

PARTS = st.lists(st.text(st.sampled_from("a\x1fstr:int1")) | st.integers(), max_size=4)


def test_a_seed_is_the_same_on_every_machine():
    # printf 'int:7\x1fstr:finetune\x1fint:2' | sha256sum begins with a57aa2102440aa71; its last bit is dropped.
    assert derive_seed(7, "finetune", 2) == 0xA57AA2102440AA71 >> 1


@settings(deadline=None)
@given(PARTS, PARTS)
def test_different_parts_give_different_seeds(one, other):
    if [(type(part), part) for part in one] != [(type(part), part) for part in other]:
        assert derive_seed(*one) != derive_seed(*other)


def test_parts_cannot_run_together():
    seeds = {derive_seed("a", "bc"), derive_seed("ab", "c"), derive_seed("abc"), derive_seed("a\x1fstr:bc")}
    assert len(seeds) == 4


def test_a_number_and_its_text_differ():
    assert derive_seed(1) != derive_seed("1")


@settings(deadline=None)
@given(PARTS)
def test_a_seed_has_63_bits(parts):
    assert 0 <= derive_seed(*parts) < 2**63
