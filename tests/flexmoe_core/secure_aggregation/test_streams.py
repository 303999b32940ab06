import numpy as np
import pytest

from flexmoe_core.secure_aggregation.streams import LARGEST_VECTOR, add_stream, derive_key

# RFC 5869, appendix A.3: SHA-256, no salt (a string of zeros), no info
HKDF_SECRET = bytes([0x0B]) * 22
HKDF_OUTPUT = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
# draft-agl-tls-chacha20poly1305-04, section 7, and RFC 8439, appendix A.1, vectors 1 and 2: key and nonce zero
CHACHA_BLOCK_0 = (
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
)
CHACHA_BLOCK_1 = (
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)
# RFC 8439, appendix A.1, vector 3: key 00..01, block counter 1; here its block 0 comes first
CHACHA_KEY_1_BLOCK_1 = (
    "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
    "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"
)


def stream(key: bytes, numbers: int) -> np.ndarray:
    vector_V = np.zeros(numbers, np.uint64)
    add_stream(vector_V, key, 1)
    return vector_V


def test_hkdf_gives_the_vector_of_the_rfc() -> None:
    assert derive_key(HKDF_SECRET, b"").hex() == HKDF_OUTPUT[:64]


def test_the_stream_is_that_of_the_rfc() -> None:
    assert stream(bytes(32), 16).astype("<u8").tobytes().hex() == CHACHA_BLOCK_0 + CHACHA_BLOCK_1
    assert stream(bytes(31) + b"\x01", 16).astype("<u8").tobytes()[64:].hex() == CHACHA_KEY_1_BLOCK_1


@pytest.mark.parametrize("numbers", [0, 1, 7, 2**15 - 1, 2**15, 2**15 + 1, 100_003])
def test_a_long_stream_continues_a_short_one_and_is_taken_off_again(numbers: int) -> None:
    key, rng = bytes(range(32)), np.random.default_rng(0)
    before = rng.integers(0, 2**64, numbers, dtype=np.uint64)
    vector_V = before.copy()
    add_stream(vector_V, key, 1)
    np.testing.assert_array_equal(vector_V - before, stream(key, 100_003)[:numbers])
    add_stream(vector_V, key, -1)
    np.testing.assert_array_equal(vector_V, before)


def test_a_vector_whose_mask_would_repeat_is_refused() -> None:
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint64), (LARGEST_VECTOR,), (0,))
    for vector in (endless, np.zeros(4), np.zeros((2, 2), np.uint64), np.zeros(8, np.uint64)[::2]):
        with pytest.raises(ValueError, match="mask"):
            add_stream(vector, bytes(32), 1)
