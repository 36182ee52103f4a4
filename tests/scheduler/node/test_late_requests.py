"""What comes late, twice or by the other way: requests that were overtaken, and the relay."""

import pytest

from scheduler.node.errors import SupervisorUnreachable
from scheduler.node.relay import Relay, RelayedClient
from tests.scheduler.node.harness import Node

pytestmark = pytest.mark.slow

TOKEN = b"the cluster's token"


def test_a_request_that_outlived_its_lease_starts_and_stops_nothing(node: Node) -> None:
    before = node.sync()
    spec = node.spec("/bin/sleep", "60")
    report = node.sync(desired=(spec,), lease_ms=1000, as_of_boot_ms=before.boot_ms - 1000)
    assert report.runs == ()
    node.begin(spec)
    report = node.sync(desired=(), lease_ms=1000, as_of_boot_ms=before.boot_ms - 1000)
    assert [run.run_id for run in report.runs] == [spec.run_id]
    assert not any(run.end_reason for run in report.runs)


def test_a_request_that_was_overtaken_stops_nothing_and_one_of_a_new_epoch_counts_anew(node: Node) -> None:
    spec = node.spec("/bin/sleep", "60")
    node.desired[spec.run_id] = spec
    node.sync(epoch=5, number=7)
    assert [run.run_id for run in node.sync(epoch=5, number=6, desired=()).runs] == [spec.run_id]
    assert node.sync(epoch=5, number=6, desired=()).runs[0].state != "stopping"
    assert node.sync(epoch=6, number=1, desired=()).epoch_seen == 6


def test_the_relay_hands_on_for_those_who_know_the_token_and_for_nobody_else(node: Node) -> None:
    relay = Relay("127.0.0.1", TOKEN, node.socket, node.folder / "relay-port")
    with RelayedClient(relay.address, TOKEN, timeout_s=5) as client:
        assert client.hello().node == "n"
    with (
        RelayedClient(relay.address, b"another token", timeout_s=5) as stranger,
        pytest.raises(SupervisorUnreachable),
    ):
        stranger.hello()
    relay.close()


def test_a_relay_that_is_started_anew_is_found_where_it_was(node: Node) -> None:
    first = Relay("127.0.0.1", TOKEN, node.socket, node.folder / "relay-port")
    first.close()
    again = Relay("127.0.0.1", TOKEN, node.socket, node.folder / "relay-port")
    assert again.address == first.address
    elsewhere = Relay("127.0.0.1", TOKEN, node.socket, node.folder / "relay-port")
    assert elsewhere.address != again.address
    again.close()
    elsewhere.close()
