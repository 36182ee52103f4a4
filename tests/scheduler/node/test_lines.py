"""What travels between controller and supervisor, read by those at its ends and carried by others."""

import json

import pytest

from scheduler.node.codec import MalformedMessage
from scheduler.node.errors import SupervisorRefused
from scheduler.node.lines import answer, question
from scheduler.node.protocol import Change, WaitRequest


def line(said: object) -> bytes:
    return json.dumps(said).encode() + b"\n"


def test_a_question_is_one_line_that_names_its_method() -> None:
    asked = question("wait_for_change", WaitRequest(7, 100))
    assert asked.count(b"\n") == 1
    assert asked.endswith(b"\n")
    assert json.loads(asked) == {"method": "wait_for_change", "params": {"after_seq": 7, "timeout_ms": 100}}


def test_an_answer_is_what_the_supervisor_says() -> None:
    assert answer(Change, "wait_for_change", line({"ok": {"seq": 3, "instance": "i"}})) == Change(3, "i")


def test_a_refusal_is_raised_with_its_code_and_sentence() -> None:
    said = {"error": {"code": "stale_epoch", "message": "Epoch 1 is over", "field": None}}
    with pytest.raises(SupervisorRefused, match="Epoch 1 is over") as refused:
        answer(Change, "sync", line(said))
    assert refused.value.facts["code"] == "stale_epoch"


@pytest.mark.parametrize("said", [b"garbage\n", b"[]\n", b"{}\n", b'{"ok": {"seq": "3", "instance": "i"}}\n'])
def test_what_is_no_answer_is_malformed(said: bytes) -> None:
    with pytest.raises(MalformedMessage):
        answer(Change, "wait_for_change", said)
