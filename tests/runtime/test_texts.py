"""Names of others: the same text for a reader, and nothing that a terminal, a page or a spreadsheet would act on."""

import io
import sys

import pytest

from remind_jax.runtime import texts


def test_controls_and_marks_of_direction_are_written_out_and_the_rest_stays():
    assert texts.visible("a\x1b[31mb\u202e\x07\x9b\r\udc80") == r"a\x1b[31mb\u202e\x07\x9b\r\udc80"
    assert texts.visible("é 中 \U0001f600\tx\n") == "é 中 \U0001f600\tx\n"


def test_a_stream_shows_them_and_keeps_what_else_a_stream_is():
    out = io.StringIO()
    stream = texts.Visible(out)
    print("a\x1b]0;x\x07", file=stream)
    stream.writelines(["\u2066", "b"])
    assert out.getvalue() == "a\\x1b]0;x\\x07\n\\u2066b"
    assert texts.raw(stream) is out
    assert texts.raw(sys.stdout) is sys.stdout
    assert not stream.isatty()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b *c*", r"a\|b \*c\*"),
        ("[x](http://y) `z`", r"\[x\](http:\/\/y) \`z\`"),
        ("<img> www.x.y # d_e", r"\<img\> www\.x.y \# d_e"),
        ("a\n\n# b", r"a  \# b"),
        ("_a_ b_c __d e_~", r"\_a\_ b_c \_\_d e\_~"),
    ],
)
def test_markdown_has_no_structure_of_a_name(text, shown):
    assert texts.markdown(text) == shown


def test_code_and_latex():
    assert texts.code("a`b\n") == "`a'b `"
    assert texts.latex("\\input{x} 5 % $a_b$ #1 & ~^") == (
        r"\textbackslash{}input\{x\} 5 \% \$a\_b\$ \#1 \& \textasciitilde{}\textasciicircum{}"
    )


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1+cmd", "-2+3", "\t=1", "'=1", "''-x"])
def test_formulas_have_a_sign_in_front_that_can_be_taken_away(text):
    assert texts.cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-5", "+1.5e3", "a=b", "", "'quoted'", 3, -1.5, None])
def test_numbers_and_other_texts_stay(value):
    assert texts.cell(value) == value


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--config=configs/nhanes.py", "--workdir=/home/me/x"], "--config=configs/nhanes.py --workdir=DIR"),
        (["--workdir", "x", "--seeds", "0,1"], "--workdir DIR --seeds 0,1"),
        (["--config=/a/b/configs/mimic.py:method=remind"], "--config=configs/mimic.py:method=remind"),
        (["--config", "/a/b/configs/mimic.py"], "--config configs/mimic.py"),
        (
            ["--config.data.root=/data/mimic", "--config.data.cache=~/c"],
            "--config.data.root=PATH --config.data.cache=PATH",
        ),
        (["--config.data.root=../shared/heart"], "--config.data.root=../shared/heart"),
        (["--config.groups.tail=('a b',)"], """'--config.groups.tail=('"'"'a b'"'"',)'"""),
    ],
)
def test_command_lines_have_no_paths_of_the_machine(arguments, shown):
    assert texts.command_line("remind train", arguments) == f"remind train {shown}"
