"""Keeps tenants' secrets out of Ray's object store, where it puts in clear what is too large for a call.

A request with secrets travels sealed with a key of this one call. The key goes along as an argument of its own, which
is small enough to travel in the call itself; what is sealed may lie where it likes.
"""

from scheduler.node.lines import question
from scheduler.node.protocol import OverRequest, SyncRequest

Sealed = tuple[bytes, bytes]
"""What the supervisor is asked, as a line, and the key that opens it: empty if it is not sealed."""


def sealed(request: SyncRequest | OverRequest) -> Sealed:
    """A request as it may travel through Ray."""
    method, sync = ("sync", request) if isinstance(request, SyncRequest) else ("sync_when_over", request.sync)
    line = question(method, request)
    if not any(spec.secrets for spec in sync.desired):
        return line, b""
    from cryptography.fernet import Fernet  # noqa: PLC0415 - most requests have no secrets, most agents never see any

    key = Fernet.generate_key()
    return Fernet(key).encrypt(line), key


def unsealed(line: bytes, key: bytes) -> bytes:
    """The line as it was."""
    if not key:
        return line
    from cryptography.fernet import Fernet  # noqa: PLC0415 - the same

    return Fernet(key).decrypt(line)
