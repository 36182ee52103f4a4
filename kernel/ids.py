"""The only place that makes identities.

An effect's id is derived from what caused it, so that a replay arrives under the same id and is recognised;
a new thing's id is random and grows with time, so that indexes stay dense.
"""

import hashlib
import secrets
import time
from uuid import UUID

_ROOT_BYTES = UUID("6f2f6d4e-2f0b-5a57-9c38-0d1c3a2f7b11").bytes
_UUID5_CLEAR = ~(0xF << 76 | 0b11 << 62)
_UUID5_SET = 0x5 << 76 | 0b10 << 62


def new_id() -> UUID:
    """A fresh UUID version 7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    unix_ms = time.time_ns() // 1_000_000
    value = (unix_ms & (2**48 - 1)) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return UUID(int=value)


def derived_id(noun: str, *causes: object) -> UUID:
    """The id of the effect `noun` of these causes: equal causes give equal ids, in every process, for ever.

    Causes are joined unambiguously (each preceded by its length), so `("a", "bc")` and `("ab", "c")` differ.
    """
    name = "".join([f"{len(text)}:{text}" for text in (noun, *map(str, causes))])
    # uuid5 of `_ROOT` and the name (RFC 9562 §5.5), in half the time of the library's.
    value = int.from_bytes(hashlib.sha1(_ROOT_BYTES + name.encode(), usedforsecurity=False).digest()[:16])
    return UUID(int=value & _UUID5_CLEAR | _UUID5_SET)


def new_secret() -> str:
    """192 random bits as 48 hexadecimal digits, for API keys and tokens."""
    return secrets.token_hex(24)
