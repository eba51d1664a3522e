"""The vendor's key for its calls, as it publishes it, and its signatures: Tink's ECDSA with a key id."""

from __future__ import annotations

import base64
import hashlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Signer:
    """A P-256 key that belongs to the sandbox's seed."""

    def __init__(self, seed: int) -> None:
        digest = hashlib.sha512(f"health-pipeline sandbox {seed} google_health webhooks".encode()).digest()
        self._key = ec.derive_private_key(
            1 + int.from_bytes(digest[:40], "big") % (_ORDER - 1), ec.SECP256R1()
        )
        self.key_id = int.from_bytes(digest[40:44], "big")

    def sign(self, body: bytes) -> str:
        """The header's value: 0x01, the key's id, the signature in DER, in base64."""
        signature = self._key.sign(body, ec.ECDSA(hashes.SHA256()))
        return base64.b64encode(b"\x01" + self.key_id.to_bytes(4, "big") + signature).decode()

    def keyset(self) -> dict[str, object]:
        """The public keyset in Tink's JSON, with a key that is out of use beside the one that signs."""
        point = self._key.public_key().public_numbers()
        # hash SHA-256, curve P-256, encoding DER; coordinates with Tink's leading zero byte.
        parameters = b"\x08\x03\x10\x02\x18\x02"
        x, y = (b"\x00" + number.to_bytes(32, "big") for number in (point.x, point.y))
        value = b"\x12" + bytes([len(parameters)]) + parameters + b"\x1a\x21" + x + b"\x22\x21" + y
        data = {
            "typeUrl": "type.googleapis.com/google.crypto.tink.EcdsaPublicKey",
            "value": base64.b64encode(value).decode(),
            "keyMaterialType": "ASYMMETRIC_PUBLIC",
        }
        key = {"keyData": data, "status": "ENABLED", "keyId": self.key_id, "outputPrefixType": "TINK"}
        retired = key | {"status": "DISABLED", "keyId": self.key_id ^ 1}
        return {"primaryKeyId": self.key_id, "key": [retired, key]}
