"""Frames out of a stream of bytes, and back. Pure: it is fed, and gives what is whole."""

from __future__ import annotations

from collections.abc import Iterator

from cells.channels.iso8583.dialect import Header, LengthForm

_WIDTHS = {
    LengthForm.BINARY2: 2,
    LengthForm.BINARY4: 4,
    LengthForm.ASCII4: 4,
    LengthForm.BCD2: 2,
}
_TPDU_BYTES = 5


class FramingLost(Exception):
    """Where the next frame begins is not known any more: the connection is of no use."""


class Framer:
    """Both directions of one connection."""

    def __init__(self, header: Header, frame_bytes_max: int) -> None:
        self._form = header.length
        self._width = _WIDTHS[header.length]
        self._counted = self._width if header.inclusive else 0
        self._tpdu = bytes.fromhex(header.tpdu)
        self._max = frame_bytes_max
        self._buffer = bytearray()

    def wrap(self, message: bytes) -> bytes:
        """Raises ValueError for a message that is too long for the bank."""
        length = len(message) + len(self._tpdu) + self._counted
        if length > self._max:
            raise ValueError("the message is longer than the bank takes")
        return self._written(length) + self._tpdu + message

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now, to be taken to the end; raises FramingLost after."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= self._width:
                length = self._read(bytes(buffer[at : at + self._width])) - self._counted
                if length < 0 or length > self._max:
                    raise FramingLost(f"a frame of {length} bytes")
                begin, end = at + self._width, at + self._width + length
                if len(buffer) < end:
                    break
                at = end
                # A frame of nothing is some hosts' sign of life.
                if length:
                    yield self._without_tpdu(bytes(buffer[begin:end]))
        finally:
            del buffer[:at]

    def _without_tpdu(self, frame: bytes) -> bytes:
        if not self._tpdu:
            return frame
        if len(frame) < _TPDU_BYTES:
            raise FramingLost("a frame shorter than its TPDU")
        return frame[_TPDU_BYTES:]

    def _written(self, length: int) -> bytes:
        match self._form:
            case LengthForm.BINARY2 | LengthForm.BINARY4:
                if length >= 1 << (8 * self._width):
                    raise ValueError("the message is longer than its header can say")
                return length.to_bytes(self._width, "big")
            case LengthForm.ASCII4:
                return _digits(length).encode("ascii")
            case LengthForm.BCD2:
                return bytes.fromhex(_digits(length))

    def _read(self, header: bytes) -> int:
        match self._form:
            case LengthForm.BINARY2 | LengthForm.BINARY4:
                return int.from_bytes(header, "big")
            case LengthForm.ASCII4:
                digits = header
            case LengthForm.BCD2:
                digits = header.hex().encode("ascii")
        # Not int() alone, which takes signs, spaces and underscores.
        if not digits.isdigit():
            raise FramingLost("a length that is no number")
        return int(digits)


def _digits(length: int) -> str:
    if length > 9_999:
        raise ValueError("the message is longer than its header can say")
    return f"{length:04}"
