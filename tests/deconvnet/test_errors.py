from deconvnet.errors import InputError


def test_a_message_is_one_short_line_whatever_a_name_holds():
    said = str(InputError(f"data.tar: {'x' * 100_000}\n\x1b[31m\u202e\udcff is missing; fetch it again"))
    assert said.startswith("data.tar: xxx") and said.endswith(" is missing; fetch it again")
    assert len(said) < 300 and said.isprintable()
    assert r"\x1b[31m\u202e\udcff" in said
    assert len(str(InputError("word " * 100_000))) < 2000


def test_an_ordinary_message_stays_as_it_is():
    said = "params.yaml: dataset.classes: 1 names are not allowed; allowed: 2 to 255 different names \u2013 \u00e4"
    assert str(InputError(said)) == said
