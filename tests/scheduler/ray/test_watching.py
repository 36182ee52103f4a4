"""A node that changes is told of, whatever is late between controller and courier, and told of once."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from scheduler.node.protocol import Report, SyncRequest
from scheduler.ray.watching import Early, Look, Watched, Watches
from tests.scheduler.controller.counted import simulated

NODE = "n"
AHEAD = (b"a question", b"")
ACTIONS = ("change", "hear", "order", "order_end", "deliver_order", "ask", "answer", "deliver_word")


class Line:
    """A controller and its courier with one node between them, in which every word waits until it is delivered."""

    def __init__(self) -> None:
        self.seq = self.heard = 0
        self.woken = self.stepping = self.ordered = False
        self.words = 0
        self.watches, self.watched = Watches(), Watched()
        self.looks_itself = False
        self.orders: deque[Look] = deque()
        self.told: deque[tuple[int, int]] = deque()
        self.asked: Look | None = None
        self.hear()
        self.order()

    def change(self) -> None:
        self.seq += 1

    def hear(self) -> None:
        """A step asks the node."""
        self.woken, self.stepping, self.looks_itself = False, True, False
        self.heard = self.seq
        self.watches.heard(NODE, self.seq)

    def order(self) -> None:
        """A step ends."""
        if self.stepping and (due := self.watches.order([NODE])):
            self.orders.append(Look(due[NODE]))
        self.stepping = False

    def order_end(self) -> None:
        """A step ends that has started something: its end is awaited, and the node asked after a breath anyway."""
        if self.stepping:
            self.watches.forget([NODE])
            self.orders.append(Look(ahead=AHEAD, within_ms=1))
            self.looks_itself = True
        self.stepping = False

    def deliver_order(self) -> None:
        if self.orders:
            self.watched.look(self.orders.popleft())
            self.ordered = True

    def ask(self) -> None:
        """The courier asks the node to say when it changes."""
        if self.asked is None and self.ordered:
            self.asked = self.watched.wanted()

    def answer(self) -> None:
        if self.asked is not None and (self.asked.ahead or self.seq != self.asked.after):
            if self.watched.found(self.asked):
                if not self.asked.ahead:
                    self.told.append((self.asked.after, self.seq))
                self.ordered = False
            self.asked = None

    def deliver_word(self) -> None:
        if self.told:
            self.words += 1
            self.woken |= self.watches.told(NODE, *self.told.popleft())

    def come_to_rest(self) -> None:
        """Deliver whatever is on its way; a controller that is woken asks, and ends its step."""
        for _ in range(20):
            if self.woken or self.looks_itself:
                self.hear()
            for action in ("order", "deliver_order", "ask", "answer", "deliver_word"):
                getattr(self, action)()


@given(st.lists(st.sampled_from(ACTIONS), max_size=60))
def test_no_change_of_a_watched_node_is_missed(actions: list[str]) -> None:
    line = Line()
    for action in actions:
        getattr(line, action)()
    line.come_to_rest()
    assert line.heard == line.seq
    line.change()
    line.come_to_rest()
    assert line.heard == line.seq


def test_many_changes_are_one_word_until_the_node_was_asked() -> None:
    line = Line()
    for _ in range(5):
        for action in ("change", "deliver_order", "ask", "answer", "deliver_word"):
            getattr(line, action)()
    assert (line.words, line.woken) == (1, True)


def test_what_an_answer_told_before_is_no_news() -> None:
    line = Line()
    for action in ("deliver_order", "ask", "change", "answer", "hear", "deliver_word"):
        getattr(line, action)()
    assert (line.words, line.woken) == (1, False)


def test_nobody_is_told_of_a_node_that_was_not_ordered_to_be_watched() -> None:
    watches = Watches()
    assert watches.order([NODE]) == {}
    watches.heard(NODE, 3)
    assert watches.order([NODE]) == {NODE: 3}
    assert watches.order([NODE]) == {}
    watches.forget_orders()
    assert not watches.told(NODE, 3, 4)
    assert watches.order([NODE]) == {NODE: 3}


def said(name: str) -> Report:
    return simulated(name).sync(SyncRequest(1, 60_000), 1000, 1000)[0]


def test_what_came_of_nodes_that_were_asked_ahead_is_had_once() -> None:
    early = Early()
    number = early.ask(["a", "b"])
    assert early.came(number, "a", said("a"))
    assert not early.came(number, "a", said("a"))
    assert early.take(["a", "b"]) == {"a": said("a")}
    assert early.take(["a", "b"]) == {}
    assert not early.came(number, "b", said("b"))  # it was asked otherwise since


def test_what_came_of_a_node_that_was_asked_ahead_again_is_no_longer_wanted() -> None:
    early = Early()
    first = early.ask(["a"])
    assert early.came(first, "a", said("a"))
    second = early.ask(["a"])
    assert not early.came(first, "a", said("a"))
    assert early.take(["a"]) == {}
    third = early.ask(["b"])
    assert second != third
    assert early.came(third, "b", said("b"))
