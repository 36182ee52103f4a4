import pickle

from kernel.errors import Invalid
from kernel.ids import derived_id, new_id


def test_equal_causes_give_equal_ids_and_shifted_causes_do_not() -> None:
    assert derived_id("capture", "job", 1) == derived_id("capture", "job", 1)
    assert derived_id("capture", "a", "bc") != derived_id("capture", "ab", "c")
    assert derived_id("capture", "a") != derived_id("release", "a")


def test_new_ids_are_version_7_of_the_rfc_variant_and_grow_with_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert {made.version for made in ids} == {7}
    assert {made.variant for made in ids} == {"specified in RFC 4122"}
    assert len(set(ids)) == 1000
    assert [made.int >> 80 for made in ids] == sorted(made.int >> 80 for made in ids)


class TooTall(Invalid):
    sentence = "{field}: {height_cm} cm is too tall."


def test_a_refusal_keeps_its_code_sentence_and_facts_through_pickling() -> None:
    refusal = pickle.loads(pickle.dumps(TooTall(field="person", height_cm=300)))
    assert (refusal.code, str(refusal), refusal.facts) == (
        "too_tall",
        "person: 300 cm is too tall.",
        {"field": "person", "height_cm": 300},
    )
