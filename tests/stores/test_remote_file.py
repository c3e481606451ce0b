"""Files of a web server: the bytes that were asked for, whatever the server does, or one sentence."""

import os
import random
import threading
from itertools import pairwise

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.stores import http, requests
from lora_inspect.stores.address import printable_address
from lora_inspect.stores.patience import timing_out
from lora_inspect.stores.remote_file import RemoteFile
from lora_inspect.stores.requests import AT_ONCE, GAP, PIECE
from lora_inspect.stores.stat import START, begin, exists, is_folder, look, one_look

SIZE = 3 * PIECE + 12_345
CONTENT = random.Random(7).randbytes(SIZE)
NAME = "a.safetensors"


@pytest.fixture
def file(folder, server):
    (folder / NAME).write_bytes(CONTENT)
    return server.url(NAME)


@pytest.fixture
def opened(file, server):
    remote = RemoteFile(file)
    server.asked.clear()
    return remote


def read(remote, start, count):
    memory = bytearray(count)
    remote.read_into(start, memory)
    return bytes(memory)


def once(misdo):
    """Does it for the first request alone."""
    first = iter([True])
    return lambda handler, asked: next(first, False) and (misdo(handler, asked) is not False)


@pytest.mark.parametrize(
    ("start", "count"),
    [(0, 8), (8, 100), (0, START), (START - 1, 2), (START, 9), (5, 3 * START), (SIZE - 3, 3), (17, SIZE - 17), (9, 0)],
)
def test_any_range_is_read_as_it_is_stored(start, count, opened):
    assert read(opened, start, count) == CONTENT[start : start + count]


def test_the_first_bytes_are_asked_for_once(opened, server):
    for start in (0, 8, 500, START - 1):
        assert read(opened, start, 1) == CONTENT[start : start + 1]
    assert [(one.start, one.stop) for one in server.asked] == [(0, START)]


def test_what_is_behind_the_end_is_never_asked_for(opened, server):
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        read(opened, SIZE - 3, 4)
    assert not server.asked


def test_ranges_with_little_between_them_are_one_request(opened, server):
    ranges = [(100_000, 4), (100_004 + GAP - 1, 4), (100_008 + 2 * GAP - 1, 4), (300_000, 8), (100_002, 1), (5, 0)]
    assert opened.read_each(ranges) == [CONTENT[start : start + count] for start, count in ranges]
    asked = sorted((one.start, one.stop) for one in server.asked)
    assert asked == [(100_000, 100_008 + GAP - 1), (100_008 + 2 * GAP - 1, 100_012 + 2 * GAP - 1), (300_000, 300_008)]


def test_no_more_than_a_piece_is_joined(opened, server):
    ranges = [(position, 4) for position in range(0, SIZE - 4, GAP)]
    assert opened.read_each(ranges) == [CONTENT[start : start + count] for start, count in ranges]
    assert max(one.sent for one in server.asked) <= PIECE
    assert len(server.asked) == -(-SIZE // PIECE)


def test_at_most_so_many_requests_are_made_at_once(opened, server):
    waiting = threading.Barrier(AT_ONCE)

    def meet(handler, asked):
        waiting.wait(20)
        return False

    server.misdo = meet
    ranges = [(number * 400_000, 4) for number in range(3 * AT_ONCE)]
    assert opened.read_each(ranges) == [CONTENT[start : start + count] for start, count in ranges]
    assert server.most_at_once == AT_ONCE
    assert len(server.asked) == 3 * AT_ONCE


def test_a_long_range_comes_in_pieces_with_the_next_ones_on_their_way(opened, server):
    pieces = opened.stream(3, SIZE - 5)
    assert next(pieces) == CONTENT[3 : 3 + PIECE]
    assert b"".join(pieces) == CONTENT[3 + PIECE : SIZE - 5]
    assert len(server.asked) == 4


def test_what_is_expected_comes_once_and_ahead(opened, server):
    start, stop, block = 11, SIZE - 7, 1_000_003
    for first in range(start, stop, block):
        opened.expect(start, stop)
        count = min(block, stop - first)
        assert read(opened, first, count) == CONTENT[first : first + count]
    asked = sorted((one.start, one.stop) for one in server.asked)
    assert asked[0][0] == start
    assert asked[-1][1] == stop
    assert all(one[1] == other[0] for one, other in pairwise(asked))
    assert max(one.sent for one in server.asked) == 4 << 20


def test_threads_that_read_the_same_range_have_its_pieces_in_common(file, opened, server):
    others = [opened, RemoteFile(file, opened.answer)]
    for remote in others:
        remote.expect(0, 8 << 20)
    for number in range(16):
        first = number << 19
        assert read(others[number % 2], first, 1 << 19) == CONTENT[first : first + (1 << 19)]
    assert len(server.asked) == 2


def test_what_is_expected_and_does_not_come_is_a_sentence(opened, folder):
    opened.expect(5, SIZE)
    assert read(opened, 5, 5) == CONTENT[5:10]
    CHANGES["other bytes"](folder / NAME)
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        read(opened, SIZE - 5, 5)
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        opened.expect(5, SIZE + 1)


def test_nobody_reads_to_the_end_of_a_stream_that_is_left(opened, server):
    pieces = opened.stream(0, SIZE)
    next(pieces)
    pieces.close()
    assert read(opened, 5, 5) == CONTENT[5:10]


@pytest.mark.parametrize(
    "misdo",
    [
        lambda handler, asked: handler.answer(500),
        lambda handler, asked: handler.answer(503),
        lambda handler, asked: handler.answer(429),
        lambda handler, asked: handler.answer(408),
        lambda handler, asked: handler.serve(asked, truncated=0),
        lambda handler, asked: handler.serve(asked, truncated=70_000),
        lambda handler, asked: handler.serve(asked, shifted=1),
    ],
    ids=["500", "503", "429", "408", "no body", "short body", "other bytes"],
)
def test_what_may_pass_is_tried_again(misdo, opened, server, pauses):
    server.misdo = once(misdo)
    assert read(opened, 100_000, 200_000) == CONTENT[100_000:300_000]
    assert len(server.asked) == 2
    assert len(pauses) == 1


def test_a_connection_that_breaks_is_made_again(opened, server, pauses):
    breaks = iter([True, True])  # after the first the client asks once more by itself
    server.misdo = lambda handler, asked: next(breaks, False) and (handler.reset() or True)
    assert read(opened, 100_000, 200_000) == CONTENT[100_000:300_000]
    assert len(pauses) == 1


def test_a_body_that_is_cut_goes_on_where_it_ended(opened, server):
    server.misdo = once(lambda handler, asked: handler.serve(asked, truncated=70_000))
    assert read(opened, 100_000, 200_000) == CONTENT[100_000:300_000]
    assert [(one.start, one.stop) for one in server.asked] == [(100_000, 300_000), (170_000, 300_000)]


def test_one_that_is_always_cut_comes_to_its_end_all_the_same(opened, server):
    server.misdo = lambda handler, asked: handler.serve(asked, truncated=3 << 20) or True
    assert read(opened, 0, SIZE) == CONTENT


def test_what_does_not_pass_is_a_sentence(opened, server, pauses):
    server.misdo = lambda handler, asked: handler.answer(500) or True
    with pytest.raises(LoraInspectError) as refused:
        read(opened, 100_000, 8)
    assert (
        str(refused.value) == f"{opened.address}: lora-inspect cannot read it (status 500, 6 times); try again later."
    )
    assert len(server.asked) == 6
    for number, pause in enumerate(pauses):
        assert 0.25 * 2**number <= pause <= 0.5 * 2**number


@pytest.mark.parametrize(
    ("said", "least", "most"), [("7", 7, 7), ("60", 60, 60), ("soon", 0.25, 0.5), ("-1", 0.25, 0.5)]
)
def test_a_server_may_ask_to_wait(said, least, most, opened, server, pauses):
    server.misdo = once(lambda handler, asked: handler.answer(429, {"Retry-After": said}))
    assert read(opened, 100_000, 8) == CONTENT[100_000:100_008]
    assert least <= pauses[0] <= most


@pytest.mark.parametrize(("said", "seconds"), [("61", "61"), ("99999999", "99,999,999"), ("9" * 12, "999,999,999,999")])
def test_a_server_that_asks_to_wait_for_longer_than_the_timeout_is_refused_at_once(
    said, seconds, opened, server, pauses
):
    server.misdo = lambda handler, asked: handler.answer(429, {"Retry-After": said}) or True
    with pytest.raises(LoraInspectError) as refused:
        read(opened, 100_000, 8)
    assert str(refused.value) == (
        f"{opened.address}: the server asks to wait for {seconds} s, but the timeout is 60 s; "
        "try again then, or set a longer timeout (--timeout)."
    )
    assert len(server.asked) == 1
    assert not pauses


def test_a_longer_timeout_allows_a_longer_pause(opened, server, pauses):
    server.misdo = once(lambda handler, asked: handler.answer(429, {"Retry-After": "61"}))
    with timing_out(90):
        assert read(opened, 100_000, 8) == CONTENT[100_000:100_008]
    assert pauses == [61]


def test_it_may_say_until_when(opened, server, pauses, monkeypatch):
    monkeypatch.setattr(http.time, "time", lambda: 1_767_225_600.0)
    server.misdo = once(lambda handler, asked: handler.answer(503, {"Retry-After": "Thu, 01 Jan 2026 00:00:42 GMT"}))
    assert read(opened, 100_000, 8) == CONTENT[100_000:100_008]
    assert pauses == [42]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "the server does not give it to you (status 401); fetch a new address if a signed one has expired"),
        (403, "the server does not give it to you (status 403)"),
        (404, "there is no such file or folder; check the address."),
        (410, "there is no such file or folder; check the address."),
        (400, "the server refuses to send it (status 400); check the address."),
        (204, "the server refuses to send it (status 204); check the address."),
    ],
)
def test_what_will_not_pass_is_a_sentence_at_once(status, says, opened, server, pauses):
    server.misdo = lambda handler, asked: handler.answer(status) or True
    with pytest.raises(LoraInspectError) as refused:
        read(opened, 100_000, 8)
    assert str(refused.value).startswith(f"{opened.address}: {says}")
    assert len(server.asked) == 1
    assert not pauses


def whole(handler, asked):
    handler.answer(200, body=CONTENT)


def unsized(handler, asked):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"5\r\nabcde\r\n0\r\n\r\n")


def coded(handler, asked):
    handler.answer(206, {"Content-Range": f"bytes {asked.start}-{asked.stop - 1}/{SIZE}", "Content-Encoding": "gzip"})


@pytest.mark.parametrize("misdo", [whole, unsized, coded, lambda handler, asked: handler.answer(206)])
def test_a_server_without_ranges_is_a_sentence(misdo, file, server):
    server.misdo = lambda handler, asked: misdo(handler, asked) or True
    with pytest.raises(LoraInspectError) as refused:
        RemoteFile(file)
    assert str(refused.value) == (
        f"{file}: the server sends only whole files, but lora-inspect reads parts of this one; "
        "download the file and name the copy."
    )
    assert len(server.asked) == 1


def test_a_small_file_may_come_whole(server):
    server.misdo = lambda handler, asked: handler.answer(200, body=b"{}") or True
    with one_look():
        remote = RemoteFile(server.url("adapter_config.json"))
        assert read(remote, 0, 2) == b"{}"


def test_an_empty_file_has_no_bytes(folder, server):
    (folder / "empty").write_bytes(b"")
    assert RemoteFile(server.url("empty")).answer.bytes == 0


CHANGES = {
    "other bytes": lambda path: (path.write_bytes(CONTENT[::-1]), os.utime(path, ns=(1, 1)))[0],
    "shorter": lambda path: path.write_bytes(CONTENT[:-1]),
    "much shorter": lambda path: path.write_bytes(CONTENT[:10]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_reads_is_an_error(change, opened, folder, server):
    assert read(opened, 100_000, 8) == CONTENT[100_000:100_008]
    CHANGES[change](folder / NAME)
    says = "there is no such file" if change == "gone" else "it changed while it was read; run the command again"
    with pytest.raises(LoraInspectError, match=says):
        read(opened, 100_000, 8)


@pytest.mark.parametrize("spelled", ['W/"{}"'.format, str, "W/{}".format], ids=["weak", "bare", "weak and bare"])
def test_an_etag_is_the_same_in_another_spelling(spelled, opened, server):
    server.spelled = spelled
    assert read(opened, 100_000, 8) == CONTENT[100_000:100_008]


def test_a_file_that_changes_while_it_is_read_is_an_error(opened, folder, server):
    def change(handler, asked):
        handler.serve(asked, truncated=70_000)
        CHANGES["other bytes"](folder / NAME)

    server.misdo = once(change)
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        read(opened, 100_000, 200_000)


def test_without_any_mark_the_size_says_that_it_changed(file, folder, server):
    server.etags = False
    opened = RemoteFile(file)
    assert opened.answer.tag == ""
    CHANGES["shorter"](folder / NAME)
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        read(opened, 100_000, 8)


def test_nothing_of_the_query_and_the_login_is_in_any_sentence(file, server):
    address = file.replace("http://", "http://me:hidden@") + "?X-Amz-Signature=hidden"
    server.misdo = lambda handler, asked: handler.answer(403) or True
    for ask in (RemoteFile, look):
        with pytest.raises(LoraInspectError) as refused:
            ask(address)
        assert str(refused.value).startswith(f"{file}: ")
        assert "hidden" not in str(refused.value)
    assert server.asked[0].path == f"/{NAME}?X-Amz-Signature=hidden"
    assert server.asked[0].headers["Authorization"] == "Basic bWU6aGlkZGVu"


def test_the_query_is_sent_as_it_was_signed(file, server):
    query = "X-Amz-Credential=a%2Fb%2fc&sig=a%2Bb+c=="
    assert read(RemoteFile(f"{file}?{query}"), 8, 4) == CONTENT[8:12]
    assert {one.path for one in server.asked} == {f"/{NAME}?{query}"}


def test_a_name_with_blanks_is_found(folder, server):
    (folder / "a b.safetensors").write_bytes(CONTENT[:100])
    server.misdo = lambda handler, asked: setattr(handler, "path", handler.path.replace("%20", " "))
    assert read(RemoteFile(server.url("a b.safetensors")), 8, 4) == CONTENT[8:12]


def redirecting(server, to):
    """Leads on from /old to the file, with a signature of its own."""

    def misdo(handler, asked):
        if asked.path.startswith("/old"):
            handler.answer(302, {"Location": to})
            return True
        return False

    server.misdo = misdo


def test_a_redirect_is_followed_once(file, server):
    redirecting(server, f"/{NAME}?sig=1%2F2")
    opened = RemoteFile(server.url("old"))
    assert opened.address == server.url("old")
    assert read(opened, 100_000, 8) == CONTENT[100_000:100_008]
    assert read(opened, 200_000, 8) == CONTENT[200_000:200_008]
    assert [one.path for one in server.asked] == ["/old", *[f"/{NAME}?sig=1%2F2"] * 3]


def test_where_it_led_to_has_expired_it_is_followed_anew(file, server):
    redirecting(server, f"/{NAME}?sig=1")
    opened = RemoteFile(server.url("old"))
    fresh = f"/{NAME}?sig=2"

    def misdo(handler, asked):
        if asked.path.startswith("/old"):
            handler.answer(307, {"Location": fresh})
        elif "sig=1" in asked.path:
            handler.answer(403)
        else:
            return False
        return True

    server.misdo = misdo
    assert read(opened, 100_000, 8) == CONTENT[100_000:100_008]
    assert [one.path for one in server.asked[-3:]] == [f"/{NAME}?sig=1", "/old", fresh]


def test_another_server_is_not_told_the_login(file, server):
    redirecting(server, file.replace("127.0.0.1", "localhost"))
    RemoteFile(server.url("old").replace("http://", "http://me:hidden@"))
    assert [one.headers.get("Authorization") for one in server.asked] == ["Basic bWU6aGlkZGVu", None]


def test_redirects_without_an_end_are_a_sentence(server):
    server.misdo = lambda handler, asked: handler.answer(302, {"Location": asked.path + "a"}) or True
    with pytest.raises(LoraInspectError, match="the server redirects to an address without a file"):
        RemoteFile(server.url("old"))
    assert len(server.asked) == 10


@pytest.mark.parametrize("to", ["file:///etc/passwd", "s3://bucket/a", "ftp://host.invalid/a"])
def test_a_redirect_to_what_is_no_server_is_a_sentence_at_once(to, server, pauses):
    redirecting(server, to)
    with pytest.raises(LoraInspectError, match="the server redirects to an address without a file"):
        RemoteFile(server.url("old"))
    assert len(server.asked) == 1
    assert not pauses


def test_the_machine_that_nobody_knows_is_the_one_that_was_asked_for(server, pauses, monkeypatch):
    import aiohttp

    found = aiohttp.TCPConnector._resolve_host

    async def resolve(self, host, *rest, **options):
        if host == "nobody.invalid":
            raise OSError(-2, "Name or service not known")
        return await found(self, host, *rest, **options)

    monkeypatch.setattr(aiohttp.TCPConnector, "_resolve_host", resolve)
    redirecting(server, "http://nobody.invalid/a?sig=hidden")
    with pytest.raises(LoraInspectError) as refused:
        RemoteFile(server.url("old"))
    assert str(refused.value) == (
        f"{server.url('old')}: the machine nobody.invalid does not exist; check the address and the network."
    )


def test_a_machine_that_nobody_knows_is_a_sentence(pauses, monkeypatch):
    import aiohttp

    async def unknown(*_args, **_options):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(aiohttp.TCPConnector, "_resolve_host", unknown)
    with pytest.raises(LoraInspectError) as refused:
        RemoteFile("https://nobody.invalid/a?sig=hidden")
    assert str(refused.value) == (
        "https://nobody.invalid/a: the machine nobody.invalid does not exist; check the address and the network."
    )
    assert not pauses


def test_a_server_that_cannot_prove_who_it_is_is_a_sentence(server, pauses, monkeypatch):
    import ssl

    import aiohttp

    async def untrusted(self, request, *_args, **_options):
        raise aiohttp.ClientConnectorCertificateError(request.connection_key, ssl.SSLCertVerificationError("hidden"))

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", untrusted)
    with pytest.raises(
        LoraInspectError, match=r"lora-inspect cannot trust the certificate of the server; check"
    ) as refused:
        RemoteFile("https://host.invalid/a?sig=hidden")
    assert "hidden" not in str(refused.value)
    assert not pauses


def test_where_nobody_listens_it_is_tried_again_and_told(server, pauses):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LoraInspectError, match=r"there is no connection to the server, 6 times"):
        RemoteFile(f"http://127.0.0.1:{port}/a")
    assert len(pauses) == 5


def test_servers_have_no_folders(server):
    assert not is_folder(server.url("d/"))
    for address in (server.url("d/"), server.address):
        with pytest.raises(LoraInspectError, match="a server does not list its folders"):
            look(address)


def test_what_is_not_given_and_what_is_not_there_look_alike(file, server):
    assert exists(file)
    assert not exists(server.url("other"))
    server.misdo = lambda handler, asked: handler.answer(403) or True
    assert not exists(file)


def page(handler, asked):
    handler.answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>" + bytes(100_000))


SAYING_NO = {
    "bad request": lambda handler, asked: handler.answer(400),
    "bad method": lambda handler, asked: handler.answer(405),
    "for legal reasons": lambda handler, asked: handler.answer(451),
    "a page": page,
    "a page to log in": lambda handler, asked: (
        page(handler, asked) if asked.path == "/login" else handler.answer(302, {"Location": "/login"})
    ),
    "a circle": lambda handler, asked: handler.answer(302, {"Location": asked.path}),
}


@pytest.mark.parametrize("how", SAYING_NO)
def test_what_a_server_says_no_to_is_not_there_if_nobody_named_it(how, file, server):
    server.misdo = lambda handler, asked: asked.path != f"/{NAME}" and (SAYING_NO[how](handler, asked) or True)
    with one_look():
        assert exists(file)
        assert not exists(server.url("adapter_config.json"))


def test_a_web_page_in_the_place_of_a_file_is_a_sentence(file, server, pauses):
    server.misdo = lambda handler, asked: page(handler, asked) or True
    with pytest.raises(LoraInspectError) as refused:
        RemoteFile(file)
    assert str(refused.value) == (
        f"{file}: the server sends a web page in its place; check the address, and log in if the server asks for it."
    )
    assert not pauses


def test_in_one_look_each_thing_is_asked_once(file, server):
    with one_look():
        for _ in range(3):
            assert look(file).answer.bytes == SIZE
            assert not exists(server.url("other"))
            with one_look():
                assert read(RemoteFile(file), 0, 8) == CONTENT[:8]
        assert len(server.asked) == 2
    assert look(file).answer.bytes == SIZE
    assert len(server.asked) == 3


def test_the_first_bytes_of_many_files_come_together(folder, server):
    names = [f"{number}.safetensors" for number in range(AT_ONCE)]
    for name in names:
        (folder / name).write_bytes(CONTENT[:1000])
    waiting = threading.Barrier(AT_ONCE)
    server.misdo = lambda handler, asked: waiting.wait(20) < 0
    with one_look():
        begin([server.url(name) for name in names])
        server.misdo = None
        for name in names:
            assert read(RemoteFile(server.url(name)), 8, 4) == CONTENT[8:12]
    assert len(server.asked) == AT_ONCE


def test_another_look_finds_what_is_new(file, folder):
    with one_look():
        before = look(file)
    CHANGES["shorter"](folder / NAME)
    assert look(file) != before


def test_who_waits_can_be_interrupted(opened, server, monkeypatch):
    held = threading.Event()
    server.misdo = lambda handler, asked: held.wait(20) or True

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(requests.concurrent.futures, "wait", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            read(opened, 100_000, 8)
    finally:
        held.set()


def test_a_printed_address_leads_to_the_same_file(file, server):
    opened = RemoteFile(f"{file}?sig=1")
    assert opened.address == file
    assert read(RemoteFile(printable_address(opened.address)), 8, 4) == CONTENT[8:12]
    assert {one.path for one in server.asked} == {f"/{NAME}?sig=1"}
