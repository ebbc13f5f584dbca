"""The tasks of reasoning-gym 0.1.25: which can be graded exactly here and how, and why the others cannot.

Decided from the source of all 106 registered tasks. `reasoning_gym`'s own `score_answer` is never called: nine of them
run the model's text as code (binary_matrix, countdown, intermediate_integration, n_queens, polynomial_multiplication,
puzzle24, simple_integration, spiral_matrix, string_insertion), the default one gives -1 half a point where the answer
is 1, and several raise on unexpected text. A task is supported only if exactly one answer is right, or `gym_scorers`
recognises all right answers, and if a seed gives the same items in every process.
"""

from __future__ import annotations

from typing import Literal

How = Literal["value", "caseless", "literal", "reduced", "expression"]
"""value: equal text, or equal rational numbers. caseless: the same, ignoring case. literal: equal text only, because an
equal number may be the question itself. reduced: a fraction in lowest terms, in any notation. expression: arithmetic
with exactly the given numbers and the value of the stored answer."""


def _names(*lines: str) -> list[str]:
    return [name for line in lines for name in line.split()]


_VALUE = _names(
    "ab acre aiw arc_1d arc_agi basic_arithmetic bf binary_alternation binary_matrix caesar_cipher chain_sum",
    "circuit_logic coin_flip count_bits count_primes course_schedule decimal_arithmetic decimal_chain_sum",
    "emoji_mystery game_of_life game_of_life_halting gcd gsm_symbolic largest_island lcm leg_counting",
    "letter_counting mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid number_filtering number_sequence",
    "path_star products rearc rectangle_count rotate_matrix rotten_oranges self_reference sentence_reordering",
    "simple_equations simple_geometry spiral_matrix string_insertion string_manipulation string_splitting",
    "string_synthesis sudoku syllogism time_intervals word_sequence_reversal word_sorting",
)

# case does not matter to the package either, and zebra_puzzles stores "carol" for the Carol of its question
_CASELESS = _names(
    "bitwise_arithmetic calendar_arithmetic color_cube_rotation family_relationships figlet_font letter_jumble",
    "needle_haystack spell_backward tsumego zebra_puzzles",
)

_HOW: dict[How, list[str]] = {
    "value": _VALUE,
    "caseless": _CASELESS,
    "literal": ["base_conversion", "dice"],
    "reduced": ["fraction_simplification"],
    "expression": ["countdown", "puzzle24"],
}

GRADED: dict[str, How] = {name: how for how, names in _HOW.items() for name in names}
"""Name -> how its answers are compared."""

_NO_ANSWER = "it stores no answer, and the package's own scorer is not exact"
_MANY = "several answers are right, and the package's own scorer is not exact or gives partial credit"
_UNSTABLE = "its items depend on Python's hash seed, so that processes would have different items"
_CODE = "one answer has many forms, and the package's own scorer runs model text as code"

REFUSED: dict[str, str] = {
    "advanced_geometry": "its question asks for three decimals and its stored angles have two",
    "boxnet": _NO_ANSWER,
    "codeio": _MANY + ": several inputs can give one output",
    "complex_arithmetic": "one number has many spellings, and the package's own scorer measures a distance",
    "composite": "it is made of other tasks: name one of them",
    "cryptarithm": _MANY + ": nothing ensures one solution",
    "futoshiki": "one solution has many layouts, and the package's own scorer gives partial credit",
    "graph_color": _NO_ANSWER,
    "group_anagrams": _MANY + ": groups in any order",
    "intermediate_integration": _CODE,
    "isomorphic_strings": _UNSTABLE,
    "jugs": _MANY + ": any sequence of moves that ends right",
    "kakurasu": _MANY + ": a puzzle with several solutions may be returned",
    "knight_swap": _MANY + ": any sequence of moves that ends right",
    "knights_knaves": "one answer has many spellings: the order of the names, and the stored one ends with a full stop",
    "list_functions": _UNSTABLE,
    "n_queens": "several boards are right, and the package's own scorer runs model text as code",
    "number_format": "the number is right in any of three notations and is compared with a tolerance",
    "number_sorting": "numbers are compared with a tolerance of 1, and the answer's quotes are not the question's",
    "palindrome_generation": _MANY + ": any palindrome of the letters",
    "palindrome_partitioning": _MANY + ": partitions in any order",
    "polynomial_equations": "solutions are rounded, in any order, and compared by distance",
    "polynomial_multiplication": _CODE,
    "pool_matrix": "averages are rounded to two decimals and compared with a tolerance",
    "power_function": "its question asks for three significant figures and its stored answer has all digits",
    "prime_factorization": _MANY + ": factors in any order",
    "propositional_logic": _NO_ANSWER,
    "quantum_lock": _MANY + ": any sequence of buttons that reaches the target",
    "ransom_note": _UNSTABLE,
    "rubiks_cube": _NO_ANSWER,
    "rush_hour": _NO_ANSWER,
    "shortest_path": _MANY + ": any path of that length",
    "simple_integration": _CODE,
    "sokoban": _MANY + ": any sequence of moves that ends right",
    "survo": _MANY + ": nothing ensures one solution",
    "tower_of_hanoi": _MANY + ": any sequence of moves that ends right",
    "word_ladder": _MANY + ": any ladder of English words",
}
"""Name -> why it is not supported."""
