"""Keeps tenants' secrets out of Ray's object store, where it puts in clear what is too large for a call.

Secrets leave a request sealed with a key of this one call. The key goes along as an argument of its own, which is small
enough to travel in the call itself; what is sealed may lie where it likes.
"""

import json
from dataclasses import replace

from scheduler.node.protocol import SyncRequest

Sealed = tuple[SyncRequest, bytes, bytes]
"""A request without secrets, the key (empty if there were none), and what it seals."""


def sealed(request: SyncRequest) -> Sealed:
    """Take a request's secrets out of it."""
    secrets = {spec.run_id: spec.secrets for spec in request.desired if spec.secrets}
    if not secrets:
        return request, b"", b""
    from cryptography.fernet import Fernet  # noqa: PLC0415 - most requests have no secrets, most agents never see any

    key = Fernet.generate_key()
    bare = tuple(replace(spec, secrets={}) for spec in request.desired)
    return replace(request, desired=bare), key, Fernet(key).encrypt(json.dumps(secrets).encode())


def unsealed(request: SyncRequest, key: bytes, secrets: bytes) -> SyncRequest:
    """The request as it was."""
    if not key:
        return request
    from cryptography.fernet import Fernet  # noqa: PLC0415 - the same

    opened = json.loads(Fernet(key).decrypt(secrets))
    desired = tuple(replace(spec, secrets=opened.get(spec.run_id, {})) for spec in request.desired)
    return replace(request, desired=desired)
