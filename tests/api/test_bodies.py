from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.bodies import Part, parameters, parse_form
from service.api.problems import Problem

TYPE = "multipart/form-data; boundary=x"


def form(*sections: bytes) -> bytes:
    return b"".join(b"--x\r\n" + section + b"\r\n" for section in sections) + b"--x--\r\n"


def field(name: str, data: bytes = b"1", more: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data


async def test_a_form_is_taken_apart_byte_for_byte() -> None:
    data = bytes(range(256)) + b"\r\n--y\r\n--"
    section = (
        b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + data
    )
    assert await parse_form(form(field("plugin", b"ocr"), section), TYPE) == [
        Part(name="plugin", data=b"ocr", media_type=None, is_file=False),
        Part(name="image", data=data, media_type="image/png", is_file=True),
    ]


@given(st.binary(max_size=200))
async def test_any_bytes_after_a_boundary_are_read_or_refused(data: bytes) -> None:
    for body in (data, b"--x\r\n" + data, b"--x\r\n" + data + b"\r\n--x--", form(field("a", data))):
        with contextlib.suppress(Problem):
            await parse_form(body, TYPE)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (form(field("a")), "multipart/form-data", 400),
        (form(field("a")), "multipart/form-data; boundary=", 400),
        (form(field("a")), "multipart/form-data; boundary=" + "b" * 71, 400),
        (form(field("a")), "multipart/form-data; boundary=other", 400),
        (b"", TYPE, 400),
        (b"preamble" * 1000, TYPE, 400),
        (form(field("a"))[:-9], TYPE, 400),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n", TYPE, 400),
        (form(b"no headers"), TYPE, 400),
        (form(b"Content-Type: text/plain\r\n\r\nx"), TYPE, 400),
        (form(b'Content-Disposition: attachment; name="a"\r\n\r\nx'), TYPE, 400),
        (form(field("")), TYPE, 400),
        (form(field("n" * 101)), TYPE, 400),
        (form(field("a\x01b")), TYPE, 400),
        (form(field("a"), field("a")), TYPE, 400),
        (form(b"Content-Transfer-Encoding: base64\r\n" + field("a")), TYPE, 400),
        (form(b"\xff: \xff\r\n" + field("a")), TYPE, 400),
        (form(*(field(f"f{n}") for n in range(65))), TYPE, 413),
    ],
)
async def test_a_broken_or_greedy_form_is_refused(body: bytes, content_type: str, status: int) -> None:
    with pytest.raises(Problem) as refused:
        await parse_form(body, content_type)
    assert refused.value.status == status


async def test_as_many_parts_as_the_limit_says_are_taken() -> None:
    assert len(await parse_form(form(*(field(f"f{n}") for n in range(64))), TYPE)) == 64


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('form-data; name="a b"; filename="x;y=\\"z\\".png"', {"name": "a b", "filename": 'x;y="z".png'}),
        ("form-data; NAME=a; name=b", {"name": "a"}),
        ('form-data; name="%22quoted%22"', {"name": '"quoted"'}),
        ("image/png", {}),
        ("text/plain;charset=utf-8", {"charset": "utf-8"}),
    ],
)
def test_parameters_of_a_header_are_read(header: str, expected: dict[str, str]) -> None:
    assert parameters(header) == expected
