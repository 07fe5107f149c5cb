"""Keys of a round's randomness: repeated work gives the same bytes, and other inputs get independent noise.

Work on rows may have to be repeated: its process can crash, or this one. Were the second try to draw its noise anew, it
would be a second run of the mechanism under one charge; and what leaves would be conditioned on the first having
crashed, which a model can make depend on rows and noise. So one secret is drawn when a round is opened and is stored
with the manifest (`secagg.state.OpenRound`) before anything is computed; sampling, noise and the rounding of the ring
are pure functions of it.

**Theorem (retries).** For inputs I = (manifest, approval, records after withdrawals) let M_I(K) be what the work on
them gives under keys K. (1) Every try on I gives M_I(K_I) for one K_I, so a round releases one draw of the mechanism,
however often it is tried. (2) For I != I' the keys K_I and K_I' are independent and uniform to everybody without the
secret, so the noise of two tries on different inputs does not cancel in their difference. (3) Once the masked vector is
committed, nobody can derive K_I any more.

Proof. (1) The keys are HKDF-SHA256 of the stored secret and an injective encoding of purpose and inputs, and the work
draws from nothing else. (2) HKDF is a pseudorandom function of the secret under `info`; the manifest's digest binds the
model that was sent and all terms, the approval hash binds plan, code and packages, and the commitment binds the records
(SHA-256 is collision resistant), so I != I' gives other `info`. (3) The commit that makes the release replaces the
journal's record by one without the secret; nothing else stores it.

Assumptions: HKDF-SHA256 and AES are pseudorandom, SHA-256 is collision resistant; the work is deterministic given rows,
model and keys: one machine, the same number of threads, kernels that repeat themselves (so on processors; on a GPU a
retry may differ in last bits, which is a second draw of nothing but rounding). Memory and old disk blocks may keep a
copy for a while (see `secagg.state`), and (3) fails for a round of whose journal somebody keeps a copy: a backup, or a
snapshot of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from datasites.study.canonical import canonical_json

Purpose = Literal["training", "evaluation", "rounding"]


@dataclass(frozen=True)
class RoundKeys:
    """The keys of one round's work on one set of inputs.

    secret: the open round's. manifest: its digest. approval: hash of what would run now. records: commitment to the
    rows that are worked on, withdrawals left out.
    """

    secret: bytes = field(repr=False)
    manifest: str
    approval: str
    records: str

    def key(self, purpose: Purpose) -> bytes:
        """Return 32 bytes for one use."""
        if len(self.secret) != 32:
            raise ValueError("round: its secret was deleted; what was computed under it has been released or given up")
        info = canonical_json(["datasites round 1", purpose, self.manifest, self.approval, self.records])
        return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(self.secret)
