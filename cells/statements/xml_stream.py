"""XML from strangers, as a stream of elements: what the parsers of XML here share.

Straight on expat, for three reasons: positions of faults; memory that does not grow with the file;
and its guards are these few handlers (defusedxml, whose last release is of 2021, sets the same).
No DTD at all is allowed, so there are no entities to expand and nothing outside to fetch; depth,
number of elements below one record, and length of a token are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO
from xml.parsers import expat

from cells.statements.model import FaultReason, Limits, StatementFault

_CHUNK_BYTES = 64 * 1024
# Elements and attributes below one record; a record is what a caller asked for.
_PARTS_MAX = 4096
# Names whose tags are remembered; the standard has some hundreds.
_TAGS_MAX = 2048
_NO_ATTRIBUTES: Mapping[str, str] = {}
_CHARSETS = frozenset({"utf-8", "us-ascii", "ascii"})


@dataclass(slots=True)
class Element:
    """A record's element: its tag without the namespace, and where it began."""

    tag: str
    line: int
    column: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def find(self, *path: str) -> Element | None:
        found: Element | None = self
        for tag in path:
            if found is None:
                return None
            found = next((child for child in found.children if child.tag == tag), None)
        return found

    def all(self, tag: str) -> Iterator[Element]:
        return (child for child in self.children if child.tag == tag)

    def value(self, *path: str) -> str:
        """The text at the path; empty where there is none."""
        found = self.find(*path)
        return "" if found is None else found.text

    def fault(self, reason: FaultReason, message: str) -> StatementFault:
        return StatementFault(reason, message, line=self.line, column=self.column)


class XmlStream:
    """Gives each record when it has ended, with the path that leads to it. Tags in `records` begin
    one, at any depth; what lies outside of records is not kept.

    An `inner` record (a detail of an entry) is given alone and is not kept in the outer one, so
    that an entry of a million details costs the memory of one.
    """

    def __init__(
        self,
        records: frozenset[str],
        on_record: Callable[[tuple[str, ...], Element], None],
        on_root: Callable[[str, str], None],
        limits: Limits,
        on_inner: Callable[[Element], None] | None = None,
        inner: str = "",
    ) -> None:
        self._records = records
        self._on_record = on_record
        self._on_root = on_root
        self._on_inner = on_inner
        self._inner = inner
        self._limits = limits
        self._path: list[str] = []
        self._tags: dict[str, str] = {}
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._parts = 0
        self._parts_outside = 0
        self._text_length = 0
        self._parser = expat.ParserCreate(namespace_separator="\x1f")
        parser = self._parser
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._entity
        parser.ExternalEntityRefHandler = self._external
        parser.ProcessingInstructionHandler = self._instruction
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data

    def feed_all(self, file: BinaryIO) -> Iterator[None]:
        """Reads the file to its end, yielding after each piece."""
        fed = 0
        try:
            while chunk := file.read(_CHUNK_BYTES):
                if not fed:
                    _check_charset(chunk)
                fed += len(chunk)
                self._parser.Parse(chunk, False)
                if fed - self._parser.CurrentByteIndex > self._limits.token_bytes_max:
                    raise self._fault(FaultReason.HOSTILE_XML, "a token without end")
                yield
            if not fed:
                raise StatementFault(FaultReason.EMPTY, "the file is empty")
            self._parser.Parse(b"", True)
            yield
        except expat.ExpatError as error:
            raise self._reason(error) from error

    def _reason(self, error: expat.ExpatError) -> StatementFault:
        message = expat.ErrorString(error.code) or "not XML"
        cut = error.code in _ERRORS_OF_CUT_FILES
        reason = FaultReason.TRUNCATED if cut else FaultReason.MALFORMED
        if error.code in _ERRORS_OF_CHARSETS:
            reason = FaultReason.CHARSET
        if "amplification" in message:
            reason = FaultReason.HOSTILE_XML
        return StatementFault(reason, message, line=error.lineno, column=error.offset + 1)

    def _fault(self, reason: FaultReason, message: str) -> StatementFault:
        return StatementFault(
            reason, message,
            line=self._parser.CurrentLineNumber, column=self._parser.CurrentColumnNumber + 1,
        )  # fmt: skip

    def _declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _CHARSETS:
            raise self._fault(FaultReason.CHARSET, f"the file says {encoding[:32]!r}, not UTF-8")

    def _doctype(self, name: str, *_: object) -> None:
        raise self._fault(FaultReason.HOSTILE_XML, f"a document type ({name[:32]!r}) is declared")

    def _entity(self, name: str, *_: object) -> None:
        raise self._fault(FaultReason.HOSTILE_XML, f"an entity ({name[:32]!r}) is declared")

    def _external(self, *_: object) -> int:
        raise self._fault(FaultReason.HOSTILE_XML, "an external entity is named")

    def _instruction(self, target: str, _data: str) -> None:
        raise self._fault(FaultReason.HOSTILE_XML, f"a processing instruction ({target[:32]!r})")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = self._tags.get(name) or self._tag_of(name)
        if len(self._path) >= self._limits.depth_max:
            raise self._fault(
                FaultReason.HOSTILE_XML, f"elements lie deeper than {self._limits.depth_max}"
            )
        if not self._path:
            self._on_root(name.rpartition("\x1f")[0], tag)
        self._path.append(tag)
        if not self._open and tag not in self._records:
            return
        inner = tag == self._inner
        if not self._open or inner:
            self._text_length = 0
            self._parts_outside, self._parts = self._parts, 0
        self._parts += 1 + len(attributes)
        if self._parts > _PARTS_MAX:
            raise self._fault(
                FaultReason.HOSTILE_XML, f"a record has more than {_PARTS_MAX} elements"
            )
        element = Element(
            tag,
            self._parser.CurrentLineNumber,
            self._parser.CurrentColumnNumber + 1,
            {key.rpartition("\x1f")[2]: value for key, value in attributes.items()}
            if attributes
            else _NO_ATTRIBUTES,
        )
        if self._open and not inner:
            self._open[-1].children.append(element)
        self._open.append(element)
        self._texts.append([])

    def _tag_of(self, name: str) -> str:
        tag = name.rpartition("\x1f")[2]
        if len(self._tags) < _TAGS_MAX:
            self._tags[name] = tag
        return tag

    def _data(self, text: str) -> None:
        if not self._open:
            return
        self._text_length += len(text)
        if self._text_length > self._limits.token_bytes_max:
            raise self._fault(FaultReason.HOSTILE_XML, "a record has too much text")
        self._texts[-1].append(text)

    def _end(self, _name: str) -> None:
        if self._open:
            element = self._open.pop()
            texts = self._texts.pop()
            if texts:
                element.text = (texts[0] if len(texts) == 1 else "".join(texts)).strip()
            if element.tag == self._inner and self._on_inner is not None and self._open:
                self._parts = self._parts_outside
                self._on_inner(element)
            elif not self._open:
                self._on_record(tuple(self._path[:-1]), element)
        self._path.pop()

    @property
    def outer(self) -> Element | None:
        """The record that is open now."""
        return self._open[0] if self._open else None


def _check_charset(start: bytes) -> None:
    """UTF-16 and UTF-32 hide what a look at the bytes would see: nobody's statement needs them."""
    if start[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\x00" in start[:4]:
        raise StatementFault(FaultReason.CHARSET, "the file is UTF-16 or UTF-32, not UTF-8", line=1)


_CODES = expat.errors.codes
_ERRORS_OF_CUT_FILES = frozenset(
    _CODES[message]
    for message in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
)
_ERRORS_OF_CHARSETS = frozenset(
    _CODES[message]
    for message in (
        expat.errors.XML_ERROR_UNKNOWN_ENCODING,
        expat.errors.XML_ERROR_INCORRECT_ENCODING,
    )
)
