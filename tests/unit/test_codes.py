"""Codes of SKUs: a code means one SKU for ever, whatever the SKU is called now."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.codes import SkuCodes
from engine.entries import InvalidEntry, Rename


def made(*codes: str) -> SkuCodes:
    found = SkuCodes()
    found.add(codes)
    return found


def rename(codes: SkuCodes, sku: int, code: str) -> bool:
    planned = codes.plan(Rename(sku, code))
    if planned is not None:
        codes.rename(planned)
    return planned is not None


def refused(codes: SkuCodes, sku: int, code: str) -> tuple[str, str]:
    with pytest.raises(InvalidEntry) as caught:
        codes.plan(Rename(sku, code))
    return caught.value.field, caught.value.description


def test_the_old_code_goes_on_meaning_the_sku() -> None:
    codes = made("TEA", "JAM")
    assert rename(codes, 1, "TEA-2027")
    assert rename(codes, 1, "TEA-2028")
    assert [codes.find(each) for each in ("TEA", "TEA-2027", "TEA-2028", "JAM")] == [1, 1, 1, 2]
    assert (codes.code(1), codes.old(1), codes.old(2)) == ("TEA-2028", ("TEA", "TEA-2027"), ())
    assert (len(codes), codes.renames) == (2, 2)
    assert not codes.are_new(["TEA"])
    assert not codes.are_new(["RICE", "RICE"])
    assert codes.are_new(["RICE"])


def test_the_same_again_changes_nothing_and_an_old_code_may_come_back() -> None:
    codes = made("TEA")
    assert rename(codes, 1, "TEA-2027")
    assert not rename(codes, 1, "TEA-2027")
    assert rename(codes, 1, "TEA")
    assert (codes.code(1), codes.old(1), codes.renames) == ("TEA", ("TEA-2027",), 2)


def test_a_code_that_is_or_was_another_skus_is_refused_and_says_whose() -> None:
    codes = made("TEA", "JAM")
    rename(codes, 1, "TEA-2027")
    assert refused(codes, 2, "TEA-2027") == ("code", "'TEA-2027' is the code of SKU 1: 'TEA-2027'")
    old = "'TEA' is an old code, which stays known, of SKU 1: 'TEA-2027'"
    assert refused(codes, 2, "TEA") == ("code", old)
    for unknown in (0, 3, 1 << 31):
        assert refused(codes, unknown, "RICE") == ("sku", "is not in the catalogue")
    assert refused(codes, 1, "") == ("code", "0 characters, must be 1 to 64")
    assert refused(codes, 1, " x") == ("code", "' x' begins or ends with a blank")
    assert codes.renames == 1


def test_so_many_old_codes_are_kept_and_no_more() -> None:
    codes = made("TEA-0")
    for n in range(1, limits.MAX_OLD_CODES + 1):
        rename(codes, 1, f"TEA-{n}")
    said = "'TEA-16' has 16 old codes, which is the most; it can get one of them back"
    assert refused(codes, 1, "TEA-17") == ("code", said)
    assert rename(codes, 1, "TEA-3")
    assert codes.old(1) == tuple(f"TEA-{n}" for n in range(17) if n != 3)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abcdef")), max_size=40))
def test_every_code_means_one_sku_from_when_it_was_given_on(asked: list[tuple[int, str]]) -> None:
    codes = made("a", "b", "c")
    meant = {"a": 1, "b": 2, "c": 3}
    for sku, code in asked:
        if meant.setdefault(code, sku) == sku:
            rename(codes, sku, code)
            assert codes.code(sku) == code
        else:
            assert refused(codes, sku, code)[0] == "code"
    for code, sku in meant.items():
        assert codes.find(code) == sku
        assert (codes.code(sku) == code) != (code in codes.old(sku))
