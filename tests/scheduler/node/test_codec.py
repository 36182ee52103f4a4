import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.node.codec import MalformedMessage, decode, encode
from scheduler.node.config import NodeConfig, read_config
from scheduler.node.protocol import Bundle, DeviceShare, Gang, Network, RunSpec, SyncRequest

SPEC = RunSpec(
    run_id="r",
    job_id="j",
    tenant_id="t",
    attempt=1,
    argv=("true",),
    workspace="/w/a",
    log="/w/l",
    env={"A": "b"},
    bundle=Bundle("/w/b", "00"),
    devices=(DeviceShare(0, 0, 500),),
    network=Network.JOB,
    gang=Gang("g", peers=("10.0.0.1",)),
)


def test_what_is_encoded_decodes_to_the_same() -> None:
    request = SyncRequest(3, 1000, (SPEC,), ("u",), ("x",))
    assert decode(SyncRequest, json.loads(json.dumps(encode(request)))) == request


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("desired", 0, "argv"), "true", "message.desired[0].argv"),
        (("desired", 0, "argv"), ["a", 1], "message.desired[0].argv[1]"),
        (("desired", 0, "attempt"), True, "message.desired[0].attempt"),
        (("desired", 0, "attempt"), 1.0, "message.desired[0].attempt"),
        (("desired", 0, "network"), "all", "message.desired[0].network"),
        (("desired", 0, "env"), {"A": None}, "message.desired[0].env.A"),
        (("desired", 0, "bundle"), {"path": "x"}, "message.desired[0].bundle.sha256"),
        (("desired", 0, "devices", 0, "slots"), 3, "message.desired[0].devices[0].slots"),
        (("epoch",), None, "message.epoch"),
    ],
)
def test_a_bad_field_is_named_by_its_path(path: tuple[str | int, ...], value: object, named: str) -> None:
    data = encode(SyncRequest(3, 1000, (SPEC,)))
    target: Any = data
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(MalformedMessage) as refused:
        decode(SyncRequest, json.loads(json.dumps(data)))
    assert refused.value.facts["field"] == named


def test_a_configuration_with_two_devices_of_one_index_is_refused(tmp_path: Path) -> None:
    config = NodeConfig("n", "h", "/s", "/w", "/r")
    data = encode(config) | {"devices": [{"index": 1, "model": "a"}, {"index": 1, "model": "b"}]}
    path = tmp_path / "node.json"
    path.write_text(json.dumps(data))
    with pytest.raises(MalformedMessage, match="same index"):
        read_config(path)


def test_a_configuration_that_is_not_json_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_text("{")
    with pytest.raises(MalformedMessage, match=r"node\.json"):
        read_config(path)
