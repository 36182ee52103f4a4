"""The star of ranks, several ranks as threads of this process."""

import contextlib
import socket
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from examples.digits.gang import FRAME_BYTES_MAX, Gang, GangBroken, Seat

COMPLETE = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def at_ease() -> None:
    """Nobody asks to stop."""


def take_part(port: int, rank: int, world_size: int, rounds: int = 3) -> list[bytes]:
    with Gang(Seat(rank, world_size, "127.0.0.1", port), timeout_s=30, check=at_ease) as gang:
        return [gang.agree(b"%d:%d" % (number, rank), b" ".join) for number in range(rounds)]


def test_every_rank_gets_what_rank_0_made_of_all(free_port: int) -> None:
    with ThreadPoolExecutor(4) as ranks:
        answers = list(ranks.map(lambda rank: take_part(free_port, rank, 4), [3, 1, 2, 0]))
    assert answers == [[b"0:0 0:1 0:2 0:3", b"1:0 1:1 1:2 1:3", b"2:0 2:1 2:2 2:3"]] * 4


def test_a_gang_of_one_needs_no_network() -> None:
    assert take_part(1, 0, 1, rounds=1) == [b"0:0"]


def test_messages_larger_than_a_socket_buffer_arrive_whole(free_port: int) -> None:
    large = bytes(range(256)) * 2**14

    def send(rank: int) -> bytes:
        with Gang(Seat(rank, 2, "127.0.0.1", free_port), timeout_s=30, check=at_ease) as gang:
            return gang.agree(large, b"".join)

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(send, range(2))) == [large * 2] * 2


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
        b"",
        b"digits-1" + (0).to_bytes(4) + (2).to_bytes(4),
        b"digits-1" + (2).to_bytes(4) + (2).to_bytes(4),
        b"digits-1" + (1).to_bytes(4) + (5).to_bytes(4),
    ],
    ids=["other protocol", "silence", "rank 0 again", "rank that does not exist", "other gang"],
)
def test_a_stranger_does_not_take_a_rank(free_port: int, words: bytes) -> None:
    with ThreadPoolExecutor(2) as ranks:
        first = ranks.submit(take_part, free_port, 0, 2)
        # Rank 0 hangs up with words unread, which may reach the stranger as a reset instead of an end.
        with connected(free_port, first) as stranger, contextlib.suppress(OSError):
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
        assert ranks.submit(take_part, free_port, 1, 2).result() == first.result()


def connected(port: int, listener: Future[list[bytes]]) -> socket.socket:
    """A connection to rank 0 as soon as it listens."""
    while not listener.done():
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            continue
        if connection.getsockname() != connection.getpeername():
            return connection
        connection.close()
    raise AssertionError(listener.result())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((8).to_bytes(4) + b"welcome!", "is not rank 0 of this job"),
        ((FRAME_BYTES_MAX + 1).to_bytes(4), "it speaks something else"),
        (b"", "ended or hung up"),
    ],
)
def test_a_rank_notices_that_it_reached_somebody_else(answer: bytes, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as ranks:
        rank = ranks.submit(take_part, listener.getsockname()[1], 1, 2)
        connection, _ = listener.accept()
        with connection:
            assert len(connection.recv(16, socket.MSG_WAITALL)) == 16
            connection.sendall(answer)
        with pytest.raises(GangBroken, match=reason):
            rank.result()


def test_rank_0_says_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GangBroken, match=f"rank 0 cannot listen at 127.0.0.1:{port}: .*in use"):
            take_part(port, 0, 2)


def test_a_seat_is_read_from_the_environment() -> None:
    assert Seat.from_environment(COMPLETE) == Seat(1, 3, "127.0.0.1", 29500)
    local = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Seat.from_environment(COMPLETE | local) == Seat(1, 3, "127.0.0.1", 29500, 1, 2)


@pytest.mark.parametrize(
    ("local_rank", "local_world_size", "visible", "own"),
    [
        (0, 1, ["0", "1"], ["0", "1"]),
        (0, 2, ["0", "1"], ["0"]),
        (1, 2, ["0", "1"], ["1"]),
        (1, 2, ["0", "1", "2", "3"], ["1", "3"]),
        (1, 2, ["1"], ["1"]),
    ],
)
def test_the_processes_of_a_node_share_its_cards(
    local_rank: int, local_world_size: int, visible: list[str], own: list[str]
) -> None:
    assert Seat(0, 4, "127.0.0.1", 29500, local_rank, local_world_size).share(visible) == own


@pytest.mark.parametrize("missing", sorted(COMPLETE))
def test_a_seat_without_one_of_its_variables_is_refused(missing: str) -> None:
    with pytest.raises(GangBroken, match=f"{missing} is not set"):
        Seat.from_environment({name: value for name, value in COMPLETE.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "3"),
        ("RANK", "-1"),
        ("RANK", "one"),
        ("WORLD_SIZE", "0"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "65536"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "two"),
    ],
)
def test_a_seat_that_makes_no_sense_is_refused(name: str, value: str) -> None:
    with pytest.raises(GangBroken, match=name):
        Seat.from_environment({**COMPLETE, name: value})
