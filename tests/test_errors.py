"""What messages show of names that others chose."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yolox.errors import printable, without_login

WORD = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/?#@"), min_size=1)


@given(st.text(st.characters(exclude_categories=[])), st.booleans())
def test_no_text_can_steer_a_terminal(text: str, newlines: bool) -> None:
    shown = printable(text, newlines=newlines)
    assert all(character.isprintable() or (newlines and character in "\n\t") for character in shown)
    assert printable(shown, newlines=newlines) == shown
    assert shown == text or not text.isprintable()
    shown.encode("utf-8")  # no half of a character is left


@given(WORD, WORD, WORD, st.sampled_from(["", "/a@b", "?q=a@b"]))
def test_logins_are_never_shown(user: str, word: str, host: str, rest: str) -> None:
    assert without_login(f"rtsp://{user}:{word}@{host}{rest}") == f"rtsp://{host}{rest}"
    assert without_login(f"rtsp://{host}{rest}") == f"rtsp://{host}{rest}"
