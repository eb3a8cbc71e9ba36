"""The one exception for what a user can mend."""

import re

LONGEST = 160  # characters of a word in a message: a name may have 100,000
MOST = 2000  # characters of a message


class InputError(Exception):
    """Something the user can mend. The message is one line: the file or key, what is wrong with it, the remedy."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """The message on one line that any terminal shows: control characters escaped, what is too long cut in its middle.

    Names and values in it come from anybody's files.
    """
    message = _cut(message, 100 * MOST)  # first, so that the rest takes no time
    message = "".join(letter if letter.isprintable() else _escaped(letter) for letter in message)
    return _cut(re.sub(rf"\S{{{LONGEST + 1},}}", lambda word: _cut(word[0], LONGEST), message), MOST)


def _escaped(letter: str) -> str:
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]}[...]{text[-(most // 4) :]}"
