"""Letters, yes or no, short texts and numbers: what is read as an answer, and what is equal."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.rewards.base import Score, Verifier
from llm.rewards.choice import ChoiceVerifier, TextVerifier, YesNoVerifier, letter, same_text, yes_or_no

CORRECT, WRONG, UNPARSABLE, ERROR = (
    Score(1.0, "correct"),
    Score(0.0, "wrong"),
    Score(0.0, "unparsable"),
    Score(0.0, "error"),
)


def boxed(answer: str) -> str:
    return rf"A thought.</thought>So it is \boxed{{{answer}}}.</thought>"


def verdict(verifier: Verifier, response: str, answer: str) -> Score:
    return verifier([response], [answer])[0]


@pytest.mark.parametrize(
    "form",
    [
        "B",
        "b",
        "(B)",
        " B ",
        "B.",
        "B)",
        "B: a thing",
        "B. a thing",
        r"\text{B}",
        r"\textbf{(B)}",
        "**B**",
        "$B$",
        r"\textbf{(B)}\ 12",
        r"\textbf{(B)}\,12",
        r"\text{\textbf{B}}",
        "{B}",
    ],
)
def test_the_usual_ways_to_write_a_letter_are_read(form: str) -> None:
    assert letter(form) == "B"
    assert verdict(ChoiceVerifier(), boxed(form), "B") == CORRECT
    assert verdict(ChoiceVerifier(), boxed(form), "C") == WRONG


@pytest.mark.parametrize(
    "form", ["", "A, B", "A or B", "AB", "A B C D", "Banana", "3.5", "the answer is B", "B" * 1000]
)
def test_hedges_words_and_prose_are_no_letter(form: str) -> None:
    assert letter(form) is None
    assert verdict(ChoiceVerifier(), boxed(form), "B") == UNPARSABLE


def test_only_the_last_box_counts() -> None:
    assert verdict(ChoiceVerifier(), r"\boxed{A} no, \boxed{B}", "B") == CORRECT
    assert verdict(ChoiceVerifier(), r"\boxed{B} no, \boxed{A}", "B") == WRONG
    assert verdict(ChoiceVerifier(), "B", "B") == UNPARSABLE


@pytest.mark.parametrize(
    ("form", "meaning"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        (r"\text{NO}", "no"),
        ("True", "yes"),
        ("false", "no"),
        ("maybe", None),
        ("yes and no", None),
    ],
)
def test_yes_and_no_are_read_and_nothing_else(form: str, meaning: str | None) -> None:
    assert yes_or_no(form) == meaning
    expected = {"yes": CORRECT, "no": WRONG, None: UNPARSABLE}[meaning]
    assert verdict(YesNoVerifier(), boxed(form), "yes") == expected


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("Sodium chloride", "sodium  chloride."),
        (r"\text{NaCl}", "nacl"),
        ("H₂O", "H2O"),
        ("3.50", "3.5"),
        ("1,000", "1000"),
        ("1 000", "1000"),
        (r"5\,\text{kg}", "5 kg"),
        ("-2", "−2"),
        (r"2.998 \times 10^{8}", "2.998e8"),
        ("2.998 x 10^8", "299800000"),
        ("10³", "10^3"),
        ("0.3333333", "0.33333333"),
        (".5", "0.5"),
        ("1e-3", "0.001"),
    ],
)
def test_texts_and_numbers_are_equal_up_to_how_they_are_written(given: str, reference: str) -> None:
    assert verdict(TextVerifier(), boxed(given), reference) == CORRECT


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("sodium", "sodium chloride"),
        ("3.51", "3.5"),
        ("3 4", "34"),
        ("10³", "103"),
        ("1e999", "2e999"),
        ("5 m", "5 km"),
        ("-2", "2"),
    ],
)
def test_other_texts_and_numbers_are_wrong(given: str, reference: str) -> None:
    assert verdict(TextVerifier(), boxed(given), reference) == WRONG


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_number_equals_itself_in_any_notation(number: float) -> None:
    """repr and 17 significant digits both name the float exactly, so the tolerance of 1e-6 is not even needed."""
    assert same_text(repr(number), f"{number:.17e}")


@pytest.mark.parametrize(
    ("verifier", "answer"), [(ChoiceVerifier(), "none"), (YesNoVerifier(), "perhaps"), (TextVerifier(), "")]
)
def test_a_reference_that_is_no_answer_is_an_error_and_not_the_models(verifier: Verifier, answer: str) -> None:
    assert verdict(verifier, boxed("A"), answer) == ERROR


@pytest.mark.parametrize("verifier", [ChoiceVerifier(), YesNoVerifier(), TextVerifier()])
@pytest.mark.parametrize(
    "hostile",
    [
        "{" * 10**5, "\\boxed{" * 10**5, "}" * 10**5, "\\boxed{" * 10**5 + "}" * 10**5, "1" * 10**6, "\\text{" * 10**5,
        "\\boxed" + " " * 10**6, "x" * 10**6, "(" * 10**5, "\x00\ud800" * 1000,
    ],
    ids=range(10),
)  # fmt: skip
def test_hostile_answers_score_zero_in_linear_time(verifier: Verifier, hostile: str) -> None:
    """A quadratic reader would need minutes for 10^5 openings; 5 s leaves room for a busy machine."""
    began = time.perf_counter()
    answer = "no" if isinstance(verifier, YesNoVerifier) else "A"
    assert [score.value for score in verifier([hostile, boxed(hostile)], [answer] * 2)] == [0.0, 0.0]
    assert time.perf_counter() - began < 5.0


def test_a_batch_is_scored_in_order() -> None:
    responses = [boxed("A"), boxed("B"), "nothing", boxed("C")]
    assert ChoiceVerifier()(responses, ["A", "A", "A", "C"]) == [CORRECT, WRONG, UNPARSABLE, CORRECT]
