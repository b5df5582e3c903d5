"""Tests of `nixsnap.image.tarindex`, on archives that Python's tarfile wrote and on ones broken by hand."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from imagekit import link, member, tar

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import tarindex
from nixsnap.image.tarindex import Extent, TarIndex

LONG = "d/" * 60 + "x" * 150


@pytest.fixture
def index(tmp_path: Path) -> Iterator:
    """Index an archive given as bytes, and read a file out of it."""
    path = tmp_path / "a.tar"

    def make(raw: bytes) -> TarIndex:
        path.write_bytes(raw)
        with path.open("rb") as file:
            return TarIndex(file.fileno(), "a.tar")

    make.read = lambda extent: path.read_bytes()[extent.offset : extent.offset + extent.size]
    return make


def header(raw: bytes, *, at: int = 0, **fields: bytes) -> bytes:
    """Overwrite fields of the header at an offset, and mend its checksum."""
    offsets = {"name": 0, "size": 124, "type": 156, "link": 157, "magic": 257}
    block = bytearray(raw[at : at + 512])
    for field, value in fields.items():
        block[offsets[field] : offsets[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return raw[:at] + bytes(block) + raw[at + 512 :]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_finds_files_in_every_format(index, tar_format: int) -> None:
    """Names of a prefix and a name (ustar), of GNU's long name entries, and of pax records."""
    name = LONG if tar_format != tarfile.USTAR_FORMAT else "d/" * 60 + "x" * 90
    files = index(tar([("a", b"one"), (name, b"two" * 500), ("./b", b"")], tar_format=tar_format))

    assert index.read(files.find("a")) == b"one"
    assert index.read(files.find(name)) == b"two" * 500
    assert index.read(files.find("b")) == b""
    assert set(files.names()) == {"a", name, "b"}


def test_names_may_be_any_bytes(index) -> None:
    """A name that is not UTF-8 comes back as the bytes it was, in either of the formats that can say it."""
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        files = index(tar([("caf\udce9", b"x"), ("\u00fc" * 80, b"y")], tar_format=tar_format))
        assert set(files.names()) == {"caf\udce9", "\u00fc" * 80}


def test_links_lead_to_their_file(index) -> None:
    """Symbolic links are relative to where they stand, hard links to the archive, and one may lead to another."""
    entries = [
        ("one/layer.tar", b"x"),
        link("two/layer.tar", "../one/layer.tar"),
        link("three", "two/layer.tar"),
    ]
    files = index(tar([*entries, link("four", "./one/layer.tar", kind=tarfile.LNKTYPE)]))

    for name in ("one/layer.tar", "two/layer.tar", "three", "four", "./four", "two/../three"):
        assert index.read(files.find(name)) == b"x"


def test_what_is_not_there_is_not_found(index) -> None:
    """A missing name, a directory, and a link to nothing."""
    files = index(tar([(member("d", type=tarfile.DIRTYPE), b""), link("broken", "absent")]))

    assert [files.find(name) for name in ("absent", "d", "broken", "", "..", "/x")] == [None] * 6


def test_links_in_a_circle_end(index) -> None:
    """Following links stops, and the message names one of them."""
    files = index(tar([link("a", "b"), link("b", "a")]))

    with pytest.raises(InvalidArgumentError, match=r"^a\.tar: the links from '[ab]' have no end"):
        files.find("a")


@pytest.mark.parametrize(
    "entry",
    [
        ("../x", b""),
        ("a/../../x", b""),
        ("/etc/passwd", b""),
        ("..", b""),
        link("l", "../x"),
        link("d/l", "../../x"),
        link("l", "/etc/passwd"),
        link("h", "../x", kind=tarfile.LNKTYPE),
        link("h", "/etc/passwd", kind=tarfile.LNKTYPE),
        (member("../d", type=tarfile.DIRTYPE), b""),
    ],
)
def test_what_climbs_out_is_refused(index, entry) -> None:
    """Any name or link that leaves the archive, though nothing would be extracted by it."""
    name = entry[0] if isinstance(entry[0], str) else entry[0].name
    with pytest.raises(InvalidArgumentError, match="climbs out of the archive") as caught:
        index(tar([("fine", b"x"), entry]))
    assert repr(name)[:-1] in str(caught.value)


@pytest.mark.parametrize("second", [("a", b"2"), ("./a", b"2"), ("x/../a", b"2"), link("a", "b")])
def test_a_name_may_be_there_once(index, second) -> None:
    """Readers differ on which of two counts, so there may not be two, however they are spelt."""
    with pytest.raises(InvalidArgumentError, match=r"^a\.tar: 'a' is there twice"):
        index(tar([("a", b"1"), second]))


def test_a_directory_may_be_there_twice(index) -> None:
    """Directories hold nothing, and tar writers repeat them."""
    directory = (member("d", type=tarfile.DIRTYPE), b"")

    assert list(index(tar([directory, directory, ("d/a", b"")])).names()) == ["d/a"]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of the unknown type b'Z'"),
    ],
)
def test_other_kinds_are_refused(index, kind: bytes, what: str) -> None:
    """What no image archive has is an error that names it."""
    with pytest.raises(InvalidArgumentError, match=f"^a.tar: 'x' is {what}$"):
        index(header(tar([("x", b"")]), type=kind))


def test_sparse_files_of_pax_are_refused(index) -> None:
    """The newer kind of sparse file, which looks like an ordinary one but for its records."""
    with pytest.raises(InvalidArgumentError, match="'x' is a sparse file"):
        index(tar([(member("x", pax_headers={"GNU.sparse.major": "1"}), b"")]))


def test_the_end_may_be_missing(index) -> None:
    """Some writers leave the two zero blocks out; what is there counts."""
    assert list(index(tar([("a", b"x")])[:1024]).names()) == ["a"]


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (0, r"byte 0: it is cut off within a header"),
        (100, r"byte 0: it is cut off within a header"),
        (512, r"byte 512: it is cut off: 'a' has 600 bytes and 0 are left"),
        (512 + 599, r"byte 512: it is cut off: 'a' has 600 bytes and 599 are left"),
        (512 + 1024 + 100, r"byte 1536: it is cut off within a header"),
    ],
)
def test_a_cut_archive_is_refused(index, keep: int, reason: str) -> None:
    """Wherever the cut, the message says at which byte and in what."""
    with pytest.raises(InvalidArgumentError, match=rf"^a\.tar is damaged at {reason}"):
        index(tar([("a", b"x" * 600), ("b", b"y")])[:keep])


def test_other_data_is_no_archive(index) -> None:
    """Text, or a header that was tampered with."""
    with pytest.raises(InvalidArgumentError, match=r"^a\.tar is not a tar archive$"):
        index(b"hello\n" * 200)
    raw = bytearray(tar([("a", b"x"), ("b", b"y")]))
    raw[1024] ^= 1
    with pytest.raises(InvalidArgumentError, match=r"damaged at byte 1024: a header's checksum is wrong"):
        index(bytes(raw))


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (b"\xff" * 12, "a negative number"),
        (b"\x80" + b"\xff" * 11, "cut off: 'a' has 309485009821345068724781055 bytes"),
        (b"77777777777\0", "cut off: 'a' has 8589934591 bytes"),
        (b"00000000009\0", "a malformed number"),
        (b"-0000000001\0", "a malformed number"),
        (b"0x000000001\0", "a malformed number"),
    ],
)
def test_absurd_sizes_are_refused(index, size: bytes, reason: str) -> None:
    """Negative ones, ones of 88 bits, and those beyond the end."""
    with pytest.raises(InvalidArgumentError, match=reason):
        index(header(tar([("a", b"x")]), size=size))


def test_a_size_in_base_256_is_read(index) -> None:
    """The form that GNU tar uses from 8 GiB on."""
    files = index(header(tar([("a", b"xyz")]), size=b"\x80" + bytes(10) + b"\x03"))

    assert files.find("a") == Extent(512, 3)


def test_a_pax_size_counts(index) -> None:
    """pax gives sizes from 8 GiB on in a record, and then it is that which counts."""
    raw = tar([(member("a", pax_headers={"size": "3"}), b"xyz")])
    files = index(header(raw, at=1024, size=b"00000000000\0"))

    assert index.read(files.find("a")) == b"xyz"


@pytest.mark.parametrize("size", ["-1", "1e3", "", "9" * 20, "\u0663"])
def test_a_malformed_pax_size_is_refused(index, size: str) -> None:
    """Only decimal digits of a number of 64 bits are a size."""
    with pytest.raises(InvalidArgumentError, match="malformed size"):
        index(tar([(member("a", pax_headers={"size": size}), b"")]))


@pytest.mark.parametrize(
    "records",
    [b"x", b"0 a=b\n", b"99 a=b\n", b"5 a=b\n", b"6 a=bX", b"4 a\n", b"-6 a=b\n", b" a=b\n", b"6 a=b\n6 a"],
)
def test_malformed_pax_records_are_refused(index, records: bytes) -> None:
    """A record whose length, key or end is wrong; none makes the reader loop."""
    raw = header(tar([("h", records), ("a", b"")]), type=b"x")
    with pytest.raises(InvalidArgumentError, match="an extended header is malformed"):
        index(raw)


class Counted(bytes):
    """Bytes that count how many of them are copied by slices."""

    copied = 0

    def __getitem__(self, where):
        part = super().__getitem__(where)
        Counted.copied += len(part) if isinstance(part, bytes) else 1
        return Counted(part) if isinstance(part, bytes) else part


def test_many_pax_records_are_read_in_one_pass(monkeypatch) -> None:
    """An archive chooses how many there are; were the rest copied after each, a mebibyte would take seconds."""
    monkeypatch.setattr(Counted, "copied", 0)
    records = Counted(b"5 a=\n" * 10_000)
    with Path("/dev/null").open("rb") as file:
        found = list(tarindex._Scanner(file.fileno(), "a.tar")._pax_records(records))
    assert found == [("a", "")] * 10_000
    assert Counted.copied < 10 * len(records)


def test_a_huge_extension_is_refused_unread(index) -> None:
    """An extended header is read into memory, so it has a limit."""
    raw = header(tar([("h", b""), ("a", b"")]), type=b"x", size=b"%011o\0" % (tarindex.MAX_EXTENSION + 1))
    with pytest.raises(InvalidArgumentError, match="an extended header has 1048577 bytes"):
        index(raw)


def test_too_many_entries_are_refused(index, monkeypatch) -> None:
    """The index lives in memory, so there is a limit to it."""
    monkeypatch.setattr(tarindex, "MAX_ENTRIES", 3)

    assert len(list(index(tar([("a", b""), ("b", b"")])).names())) == 2
    with pytest.raises(InvalidArgumentError, match="more than 3 entries"):
        index(tar([("a", b""), ("b", b""), ("c", b""), ("d", b"")]))


def test_the_size_of_a_link_is_ignored(index) -> None:
    """As POSIX says: a link that claims a size has no data behind it all the same."""
    raw = tar([link("l", "a"), ("a", b"xyz")])
    files = index(header(raw, size=b"00000001000\0"))

    assert index.read(files.find("l")) == b"xyz"
