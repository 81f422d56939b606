from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import (
    InputError,
    OptimizationProfile,
    ShapeRange,
    batch_limits,
    check_profiles,
    profiles_to_toml,
    read_profiles,
    smallest_profile,
)
from support.strategies import no_deadline, profile_sets


def profile(sequence: tuple[int, int], batch: tuple[int, int] = (1, 8)) -> OptimizationProfile:
    return OptimizationProfile(
        batch_size=ShapeRange(min=batch[0], opt=batch[1], max=batch[1]),
        sequence_length=ShapeRange(min=sequence[0], opt=sequence[0], max=sequence[1]),
    )


def write(folder: Path, text: str) -> Path:
    path = folder / "profiles.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("low", "opt", "high"), [(0, 1, 2), (2, 1, 3), (1, 4, 3), (5, 5, 4)])
def test_a_range_out_of_order_is_refused(low: int, opt: int, high: int) -> None:
    with pytest.raises(InputError, match=rf"got min {low}, opt {opt}, max {high}; allowed: 1 <= min <= opt <= max"):
        ShapeRange(min=low, opt=opt, max=high)


def test_both_ends_of_a_box_belong_to_it() -> None:
    box = profile((9, 64), (1, 4))

    assert box.fits(1, 9)
    assert box.fits(4, 64)
    assert not box.fits(5, 64)
    assert not box.fits(0, 64)
    assert not box.fits(4, 65)
    assert not box.fits(4, 8)


@given(profiles=profile_sets, data=st.data())
@no_deadline
def test_the_smallest_profile_that_takes_a_batch_is_found_whatever_the_order(
    profiles: tuple[OptimizationProfile, ...], data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, max(batch_limits(profiles))))
    edge, most = next((edge, most) for edge, most in batch_limits(profiles).items() if edge >= length)
    found = smallest_profile(profiles, batch_size=data.draw(st.integers(1, most)), sequence_length=length)

    assert found.sequence_length.max == edge
    assert found == smallest_profile(profiles[::-1], batch_size=found.batch_size.max, sequence_length=length)


def test_of_two_profiles_for_one_length_the_one_of_fewer_pairs_is_taken() -> None:
    alone, many = profile((1, 64), (1, 1)), profile((1, 64), (1, 32))

    assert smallest_profile([many, alone], batch_size=1, sequence_length=7) is alone
    assert smallest_profile([many, alone], batch_size=2, sequence_length=7) is many
    assert batch_limits([many, alone]) == {64: 32}


@pytest.mark.parametrize(("batch_size", "sequence_length"), [(9, 10), (1, 200), (0, 10)])
def test_a_batch_that_no_profile_takes_is_refused(batch_size: int, sequence_length: int) -> None:
    with pytest.raises(InputError, match=f"got {batch_size} x {sequence_length}; allowed: 1-8 x 1-64, 1-8 x 65-128"):
        smallest_profile([profile((65, 128)), profile((1, 64))], batch_size=batch_size, sequence_length=sequence_length)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "there is no optimization profile"),
        ([profile((1, 64), (2, 8))], "profile 2-8 x 1-64 takes no batch of one pair; got batch_size.min 2; allowed: 1"),
        ([profile((2, 64))], "profile 1-8 x 2-64 leaves out sequence lengths; got sequence_length.min 2; allowed: up to 1"),
        ([profile((66, 99)), profile((1, 64))], "got sequence_length.min 66; allowed: up to 65. Start each profile right"),
        ([profile((1, 64)), profile((30, 99))], "got sequence lengths up to 99; allowed: up to the model's max_length, 100"),
    ],
)
def test_profiles_that_leave_shapes_out_are_refused(profiles: list[OptimizationProfile], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_profiles(profiles, max_length=100)
    assert message in str(caught.value)


@given(profiles=profile_sets)
@no_deadline
def test_profiles_survive_the_file(
    profiles: tuple[OptimizationProfile, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("profiles"), profiles_to_toml(profiles))

    assert read_profiles(path) == profiles
    assert read_profiles(str(path)) == profiles


GOOD = "batch_size = { min = 1, opt = 2, max = 4 }\nsequence_length = { min = 1, opt = 8, max = 16 }\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no optimization profile; allowed: one or more"),
        ("profile = 1", "unknown key 'profile'; allowed: profiles"),
        ("profiles = 3", "profiles is not a list; got 3; allowed: a [[profiles]] table for each"),
        ("profiles = [3]", "profiles[0]: expected an object, got int"),
        ("[[profiles]]\n" + GOOD + "x = 1", "profiles[0]: unknown field 'x'; allowed: batch_size and sequence_length"),
        ("[[profiles]]\nbatch_size = 1", "profiles[0].batch_size: expected an object, got int"),
        ("[[profiles]]\nbatch_size = { min = 1, opt = 1, max = 1 }", "profiles[0]: field 'sequence_length' is missing"),
        ("[[profiles]]\n" + GOOD.replace("16", "true"), "profiles[0].sequence_length.max: expected int, got bool"),
        ("[[profiles]]\n" + GOOD.replace("16", "1.5"), "profiles[0].sequence_length.max: expected int, got float"),
        ("[[profiles]]\n" + GOOD.replace("opt = 2, ", ""), "profiles[0].batch_size: field 'opt' is missing"),
        (
            "[[profiles]]\n" + GOOD + "[[profiles]]\n" + GOOD.replace("opt = 8", "opt = 17"),
            "profiles[1]: a range is out of order; got min 1, opt 17, max 16; allowed: 1 <= min <= opt <= max",
        ),
        ("[[profiles]]\n" + GOOD.replace("min = 1, opt = 8", "min = 8, opt = 8"), "profile 1-4 x 8-16 leaves out sequence"),
        ("[[profiles]", "cannot read the optimization profiles"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(InputError) as caught:
        read_profiles(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    latin1 = tmp_path / "latin1.toml"
    latin1.write_bytes(b'profiles = "\xe9"')

    for path in (tmp_path / "absent.toml", tmp_path, latin1):
        with pytest.raises(InputError) as caught:
            read_profiles(path)
        assert str(path) in str(caught.value)
