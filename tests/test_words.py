"""Everything that a user reads is in the words of papers and of the Hub, in American spelling.

The list is exact: what is on it stands nowhere in README, docs, examples' pages, the card template, help texts,
strings, docstrings and comments of the product.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# (what is not written, what is)
WORDS = [
    (r"pictures?", "image"),
    (r"judg(e|es|ed|ing|ements?|ments?)", "evaluate"),
    (r"(left|leave|leaves|leaving) (it |them )?out", "skipped, dropped"),
    (r"anew", "again"),
    (r"mend(s|ed|ing)?", "fix"),
    (r"licence[sd]?", "license"),
    (r"wordings?", "template, per-template accuracy"),
    (r"(un)?locked (towers?|layers?|groups?|weights)", "frozen, trainable"),
    (r"(un)?locks? (a|the|its) (tower|layer)s?", "freezes"),
    (r"embedded (data|images?|emoji|pairs)", "bundled"),
    (r"vectors? of", "embedding of"),
    (r"(class|text|image|label|unit) vectors?", "embedding"),
    (r"evaluation protocols?|protocols? of the paper", "task"),
    (r"factor on the cosines", "logit scale"),
    (r"(a|the|second) contrast", "contrastive loss"),
    (r"rooms?", "package"),
    (r"(colou?r|behavi?ou?r)(?<=our)s?", "color, behavior"),
    (r"gre(y)s?", "gray"),
    (r"(un)?labelled", "labeled"),
    (
        r"(normal|initial|quant|recogn|organ|optim|minim|maxim|summar|serial|general|token|util|special)is(e|es|ed|ing|ation|er|ers)",
        "-ize",
    ),
    (r"cent(re)s?", "center"),
]
PATTERNS = [(re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), instead) for pattern, instead in WORDS]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "examples/*/README.md", "hf_clip/assets/*.md"]
CODE = ["hf_clip", "conversion", "training", "cli", "benchmarks", "tools", "examples"]


def offences(text: str, at: str, first_line: int = 1) -> list[str]:
    """A line for each word of the list."""
    return [
        f"{at}:{first_line + text.count(chr(10), 0, found.start())}: {found[0]!r}, write: {instead}"
        for pattern, instead in PATTERNS
        for found in pattern.finditer(text)
    ]


def test_the_pages_speak_the_fields_language():
    wrong = []
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            wrong += offences(page.read_text("utf-8"), page.relative_to(ROOT).as_posix())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", CODE)
def test_strings_docstrings_and_comments_speak_the_fields_language(folder):
    wrong = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        source = file.read_text("utf-8")
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                wrong += offences(token.string, file.relative_to(ROOT).as_posix(), token.start[0])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text", ["a picture", "Judged anew", "was left out", "two locked towers", "normalised", "colour"]
)
def test_the_list_finds_what_is_on_it(text):
    assert offences(text, "page.md")


@pytest.mark.parametrize(
    "text", ["an image", "evaluated again", "skipped", "a lock file", "a vector", "embedded", "color"]
)
def test_the_list_leaves_other_words_alone(text):
    assert not offences(text, "page.md")


# Shapes in names of variables within a function: `scores_BK`.
CALLED_BY_TORCH = ("forward", "backward")
SUFFIX = re.compile(r".+_[A-Z]{1,4}\d?")


def shaped_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of public arguments, fields and attributes with a shape in their name.

    What torch calls, `forward` and `backward`, is called by no one else.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in CALLED_BY_TORCH:
            yield from ((node.lineno, each.arg) for each in ast.walk(node.args) if isinstance(each, ast.arg))
        elif isinstance(node, ast.ClassDef):
            fields = (each.target for each in node.body if isinstance(each, ast.AnnAssign))
            yield from ((each.lineno, each.id) for each in fields if isinstance(each, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


@pytest.mark.parametrize("folder", CODE)
def test_no_public_name_has_a_shape_in_it(folder):
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, name in shaped_names(ast.parse(file.read_text("utf-8")))
        if SUFFIX.fullmatch(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_shapes_in_public_names_are_found():
    code = "def f(x_BD): ...\nclass A:\n    y_BD: int\n    def g(self):\n        self.z_BD = 1\n        w_BD = 2"
    found = [name for _, name in shaped_names(ast.parse(code)) if SUFFIX.fullmatch(name)]
    assert sorted(found) == ["x_BD", "y_BD", "z_BD"]
