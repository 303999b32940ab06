"""Keys derived from secrets (HKDF, RFC 5869) and the masks made of them: a ChaCha20 stream (RFC 8439) of uint64.

Shapes: V numbers of a vector.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES: Final = 32
LARGEST_VECTOR: Final = 2**35
"""Numbers below which ChaCha20's 32-bit counter of 64-byte blocks does not come round."""
_CHUNK = 2**15  # numbers: 256 KiB, which stays in the cache between the cipher and the addition
_NUMBER_BYTES = 8

Vector = NDArray[np.uint64]


def derive_key(secret: bytes, info: bytes) -> bytes:
    """32 bytes by HKDF-SHA256 without salt; another ``info`` gives an unrelated key."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def add_stream(vector_V: Vector, key: bytes, sign: int) -> None:
    """Add (sign 1) or subtract (-1) the key's stream modulo 2**64, in place.

    A key serves once: its stream begins at counter and nonce zero. Raises ValueError for a vector that is too long
    or no contiguous uint64.
    """
    if vector_V.dtype != np.uint64 or vector_V.ndim != 1 or not vector_V.flags.c_contiguous:
        raise ValueError("masks are added to contiguous uint64 vectors")
    if len(vector_V) >= LARGEST_VECTOR:
        raise ValueError(f"a mask has fewer than {LARGEST_VECTOR} numbers")
    encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    zeros, stream = bytes(_CHUNK * _NUMBER_BYTES), bytearray(_CHUNK * _NUMBER_BYTES)
    numbers = np.frombuffer(stream, dtype="<u8")
    add = np.add if sign > 0 else np.subtract
    for start in range(0, len(vector_V), _CHUNK):
        part_V = vector_V[start : start + _CHUNK]
        encryptor.update_into(zeros, stream)
        add(part_V, numbers[: len(part_V)], out=part_V)
