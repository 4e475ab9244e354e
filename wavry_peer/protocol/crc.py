"""CRC-16/KERMIT, the check value of RIFT packets (poly 0x1021 reflected, init 0)."""

from typing import Final

__all__ = ["crc16_kermit"]


def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x8408 if crc & 1 else crc >> 1
        rows.append(crc)
    return tuple(rows)


_TABLE: Final = _table()


def crc16_kermit(data: bytes) -> int:
    """Return the CRC of `data`; ``crc16_kermit(b"123456789") == 0x2189``."""
    crc = 0
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc
