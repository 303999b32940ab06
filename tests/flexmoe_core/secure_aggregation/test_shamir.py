from collections import Counter
from contextlib import suppress
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.secure_aggregation.shamir import PRIME, combine, evaluate, interpolate_at_zero, split

SECRETS = st.binary(min_size=32, max_size=32)


def is_probably_prime(number: int) -> bool:
    """Miller and Rabin, forty fixed bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        value = pow(base, odd, number)
        if value not in (1, number - 1):
            for _ in range(twos - 1):
                value = value * value % number
                if value == number - 1:
                    break
            else:
                return False
    return True


def test_the_field_holds_every_secret_and_is_a_field() -> None:
    assert PRIME > 2**256
    assert is_probably_prime(PRIME)
    assert not any(is_probably_prime(number) for number in range(2**256 + 1, PRIME))


@given(SECRETS, st.integers(1, 6), st.integers(0, 4), st.randoms())
def test_any_threshold_shares_give_the_secret(secret: bytes, threshold: int, more: int, random) -> None:  # noqa: ANN001
    indices = random.sample(range(1, 60), threshold + more)
    shares = split(secret, threshold, indices)
    chosen = random.sample(indices, threshold)
    assert combine({index: shares[index] for index in chosen}) == secret


@given(SECRETS, st.integers(2, 6))
def test_fewer_shares_give_something_else(secret: bytes, threshold: int) -> None:
    shares = split(secret, threshold, range(1, threshold + 1))
    for few in combinations(shares.items(), threshold - 1):
        with suppress(ValueError):
            assert combine(dict(few)) != secret


def test_fewer_shares_than_the_threshold_are_distributed_alike_for_every_secret() -> None:
    """Every polynomial over a field of 7: two shares of threshold 3 take each pair of values equally often."""
    prime, points = 7, (2, 5)
    for secret in range(prime):
        seen = Counter(
            tuple(evaluate((secret, *rest), point, prime) for point in points)
            for rest in product(range(prime), repeat=2)
        )
        assert len(seen) == prime**2
        assert set(seen.values()) == {1}
    assert interpolate_at_zero({1: 3, 2: 3, 4: 3}, prime) == 3


def test_shares_of_the_same_secret_are_never_the_same() -> None:
    assert split(bytes(32), 3, [1, 2, 3]) != split(bytes(32), 3, [1, 2, 3])


@pytest.mark.parametrize(
    ("secret", "threshold", "indices"),
    [
        (bytes(31), 2, [1, 2]),
        (bytes(32), 3, [1, 2]),
        (bytes(32), 2, [0, 1]),
        (bytes(32), 2, [1, 1]),
        (bytes(32), 0, [1]),
    ],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, indices: list[int]) -> None:
    with pytest.raises(ValueError):
        split(secret, threshold, indices)


def test_numbers_outside_the_field_are_no_shares() -> None:
    with pytest.raises(ValueError, match="field"):
        combine({1: b"\xff" * 33})
    with pytest.raises(ValueError, match="secret"):
        combine({1: (2**256 + 1).to_bytes(33, "big")})
