"""Variants: what a template stands for, against a reference that enumerates everything, and hostile templates."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from itertools import combinations, product

import pytest

from engine.prompts import variants
from engine.prompts.variants import MAX_SUMMARY, MAX_TEMPLATE_CHARACTERS, MAX_VARIANTS, escape, expand
from engine.request import MAX_PROMPT_CHARACTERS

Node = str | list[list["Node"]]  # text, or a group: of each alternative its nodes


def random_nodes(dice: random.Random, depth: int = 0) -> list[Node]:
    """A few nodes in a row, with text that provokes: escapes, spaces, nothing at all, lone backslashes."""
    nodes: list[Node] = []
    for _ in range(dice.randint(0, 3)):
        if depth < 3 and dice.random() < 0.45:
            nodes.append([random_nodes(dice, depth + 1) for _ in range(dice.randint(2, 3))])
        else:
            nodes.append(dice.choice(["a", "b", "aa", "{", "|", "}", " ", "\\ ", "ü"]))
    return nodes


def written(nodes: list[Node]) -> str:
    """The template for `nodes`."""
    return "".join(
        ("\\" + node if node in "{|}" else node)
        if isinstance(node, str)
        else "{" + "|".join(written(alternative) for alternative in node) + "}"
        for node in nodes
    )


def every_text(nodes: list[Node]) -> list[str]:
    """All texts of `nodes` by brute force, the leftmost choice changing slowest."""
    texts = [
        [node] if isinstance(node, str) else [text for alternative in node for text in every_text(alternative)]
        for node in nodes
    ]
    return ["".join(pieces) for pieces in product(*texts)]


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of `engine.prompts.variants` run during `work`."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != variants.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("a {red|blue} circle", ["a red circle", "a blue circle"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("a {|big }circle", ["a circle", "a big circle"]),
        ("{|a}", ["", "a"]),
        ("{a|a|b|a}", ["a", "b"]),
        ("{a|ab}{bc|c}", ["abc", "ac", "abbc"]),
        ("{|}{|}", [""]),
        (r"a \{red\|blue\} circle", ["a {red|blue} circle"]),
        (r"{a\|b|c\}}", ["a|b", "c}"]),
        (r"C:\{a|b}", [r"C:{a|b}"]),
        (r"\a \\ {x|\y}", [r"\a \\ x", r"\a \\ \y"]),
        ("{red} a|b", ["{red} a|b"]),
        ("{a {b|c}}", ["{a b}", "{a c}"]),
        ("{a|b", ["{a|b"]),
        ("a|b}", ["a|b}"]),
        ("{a|b {c|d}", ["{a|b c", "{a|b d"]),
        ("}{a|b}{", ["}a{", "}b{"]),
        ('{"k": 1}', ['{"k": 1}']),
        ("  a  b  ", ["a  b"]),
        ("{ |}a", ["a"]),
        ("{a\n|b}\nc", ["a\n\nc", "b\nc"]),
        ("", [""]),
        ("a {2-4}", ["a 2", "a 3", "a 4"]),
        ("{ 0 - 1 }x", ["0x", "1x"]),
        ("{4-2} {2-2} {02-4} {2-4x} {1-99999}", ["{4-2} {2-2} {02-4} {2-4x} {1-99999}"]),
        ("{2-3|b}", ["2-3", "b"]),
        (r"\{2-4}", ["{2-4}"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, c"]),
        ("{1-2$$ and $$a|b|c}.", ["a.", "b.", "c.", "a and b.", "a and c.", "b and c."]),
        ("{-1$$a|b}", ["", "a", "b"]),
        ("{2-$$a|b|c}", ["a, b", "a, c", "b, c", "a, b, c"]),
        ("{2$$$${x|y}|b|b}", ["xb", "yb"]),
        ("{9$$a|b}", ["a, b"]),
        ("{a|2$$b}", ["a", "2$$b"]),
        ("{2$$a} $$", ["{2$$a} $$"]),
    ],
)
def test_a_template_stands_for(template: str, prompts: list[str]) -> None:
    expansion = expand(template)
    assert list(expansion.prompts) == prompts
    assert (expansion.total, expansion.capped) == (len(prompts), False)


@pytest.mark.parametrize("seed", range(400))
def test_a_random_template_gives_the_prompts_of_brute_force_in_order(seed: int) -> None:
    nodes = random_nodes(random.Random(seed))
    every = every_text(nodes)
    expansion = expand(written(nodes))
    if len(set(every)) <= MAX_VARIANTS:
        assert list(expansion.prompts) == list(dict.fromkeys(text.strip() for text in every))
        assert (expansion.total, expansion.capped) == (len(expansion.prompts), False)
    else:
        first = list(dict.fromkeys(every))[: MAX_VARIANTS + 1]
        assert list(expansion.prompts) == list(dict.fromkeys(text.strip() for text in first))[:MAX_VARIANTS]
        assert expansion.capped
        assert len(set(every)) <= expansion.total <= len(every)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_picked_is_every_combination_in_order(seed: int) -> None:
    dice = random.Random(seed)
    words = dice.sample(["a", "b", "c", "d", "e", "f"], dice.randint(2, 6))
    low, high = sorted(dice.choices(range(7), k=2))
    ends = (min(low, len(words)), min(high, len(words)))
    every = [", ".join(some) for number in range(ends[0], ends[1] + 1) for some in combinations(words, number)]
    expansion = expand(f"{{{low}-{high}$${'|'.join(words)}}}")
    assert (list(expansion.prompts), expansion.total) == (every[:MAX_VARIANTS], len(every))


@pytest.mark.parametrize("seed", range(300))
def test_noise_is_never_an_error_and_an_escaped_prompt_stands_for_itself(seed: int) -> None:
    dice = random.Random(seed)
    noise = "".join(dice.choices("{{|}}\\ab 2-$", k=dice.randint(0, 40)))
    expansion = expand(noise)
    assert 1 <= len(expansion.prompts) <= MAX_VARIANTS
    assert len(set(expansion.prompts)) == len(expansion.prompts)
    assert expansion.capped == (expansion.total > len(expansion.prompts))
    assert expand(escape(noise)).prompts == (noise.strip(),)
    for prompt in expansion.prompts:
        assert expand(escape(prompt)).prompts == (prompt,)


def test_a_prompt_without_braces_needs_no_escape() -> None:
    assert escape("a red circle | ink {sketch}") == "a red circle | ink {sketch}"
    assert escape("a {b|c}") == r"a \{b\|c\}"
    assert expand(escape("{1-3} {1$$a|b}")).prompts == ("{1-3} {1$$a|b}",)


def test_the_first_64_are_kept_and_the_others_counted() -> None:
    exact = expand("{a|b}" * 6)
    assert (len(exact.prompts), exact.total, exact.capped) == (MAX_VARIANTS, 64, False)
    more = expand("{a|b}" * 7)
    assert (len(more.prompts), more.total, more.capped) == (MAX_VARIANTS, 128, True)
    assert more.prompts[:3] == ("aaaaaaa", "aaaaaab", "aaaaaba")
    assert expand("{" + "|".join(map(str, range(100))) + "}").total == 100
    assert expand("{{a|b}{c|d}|{e|f|g}}" * 50).total == 7**50


def test_equal_choices_are_one_however_many_there_are() -> None:
    assert expand("{a|a}" * 5000).prompts == ("a" * 5000,)
    ambiguous = expand("{a|aa}" * 40)
    assert ambiguous.prompts == tuple("a" * length for length in range(40, 81))
    assert (ambiguous.total, ambiguous.capped) == (41, False)


def test_choices_are_those_of_the_outermost_groups() -> None:
    assert expand("a {red|dark {blue|green}} {x} {circle|square}").choices == (
        ("red", "dark blue", "dark green"),
        ("circle", "square"),
    )


@pytest.mark.parametrize(
    ("template", "summary"),
    [
        ("a circle", ""),
        ("{a|a}", ""),
        ("{oil painting|photo} of a keeper", "2 variants: oil painting / photo"),
        ("a {|big } {red|blue} circle", "4 variants: (nothing) / big, red / blue"),
        ("{a\n  b|c\x1b[2J}", "2 variants: a b / c\\x1b[2J"),
        ("{a|b}" * 10, "the first 64 of 1,024 variants: a / b, a / b, a / b, a / b, a / b, a / b,..."),
        ("{%s|y}" % ("x" * 50), "2 variants: xxxxxxxxxxxxxxxxxxxxx... / y"),
    ],
)
def test_the_summary_says_how_many_and_which(template: str, summary: str) -> None:
    assert expand(template).summary == summary
    assert len(summary) <= MAX_SUMMARY


HOSTILE = {
    "opening": lambda n: "{" * n,
    "closing": lambda n: "}" * n,
    "pairs": lambda n: "{" * (n // 2) + "}" * (n // 2),
    "bars": lambda n: "{" + "|" * (n - 2) + "}",
    "escapes": lambda n: "\\{" * (n // 2),
    "many groups": lambda n: "{a|b}" * (n // 5),
    "ambiguous groups": lambda n: "{a|aa}" * (n // 6),
    "nested to the right": lambda n: "{a|x" * (n // 5) + "}" * (n // 5),
    "nested to the left": lambda n: "{x" * (n // 5) + "|a}" * (n // 5),
    "nested with groups": lambda n: "{x{y|z}" * (n // 10) + "|a}" * (n // 10),
    "numbers": lambda n: "{1-9}" * (n // 5),
    "picks": lambda n: "{2$$a|b|aa}" * (n // 11),
    "many picks": lambda n: "{0-99$$" + "a|b" * (n // 3) + "}",
    "ambiguous picks": lambda n: ("{-$$$$" + "|".join("a" * length for length in range(16)) + "}") * (n // 143),
    "nested picks": lambda n: "{1-9$$x|" * (n // 9) + "}" * (n // 9),
    "open and nested": lambda n: "{a|b" * (n // 5) + "}" * (n // 5),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_work_grows_with_the_length_alone(shape: str) -> None:
    short, long = HOSTILE[shape](3000), HOSTILE[shape](6000)
    work = lines_run(lambda: expand(long))
    assert work <= 2.3 * lines_run(lambda: expand(short))
    assert work <= 150 * len(long)


@pytest.mark.parametrize("shape", HOSTILE)
def test_the_longest_template_of_any_shape_is_expanded(shape: str) -> None:
    expansion = expand(HOSTILE[shape](MAX_TEMPLATE_CHARACTERS))
    assert 1 <= len(expansion.prompts) <= MAX_VARIANTS
    assert len(expansion.summary) <= MAX_SUMMARY


def test_ten_thousand_levels_are_expanded() -> None:
    expansion = expand("{a|x" * 10_000 + "}" * 10_000)
    assert expansion.prompts[:3] == ("a", "xa", "xxa")
    assert (len(expansion.prompts), expansion.total) == (MAX_VARIANTS, 10_001)


def test_a_template_past_all_bounds_has_no_variants() -> None:
    assert MAX_TEMPLATE_CHARACTERS > MAX_PROMPT_CHARACTERS
    template = "{a|b}" * (MAX_TEMPLATE_CHARACTERS // 5 + 1)
    assert expand(template).prompts == (template,)
    assert escape(template) == template


def test_the_largest_number_can_be_printed_and_is_summed_up() -> None:
    expansion = expand("{|a|b}" * (MAX_TEMPLATE_CHARACTERS // 6))  # nothing makes more prompts of as many characters
    assert len(str(expansion.total)) == 3976  # Python prints no more than 4300
    assert expansion.summary.startswith("the first 64 of more than a billion variants: (nothing) / a / b, ")
