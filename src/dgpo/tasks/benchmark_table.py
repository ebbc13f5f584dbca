"""The benchmarks as data: source, number of rows, hashes and known errors of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dgpo.tasks.content import after_hashes, canonical_integer, without_dollars


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A data set on the Hugging Face hub, and how its columns map.

    Attributes:
        name, config, split: as `datasets.load_dataset` takes them.
        problem, answer: its columns.
        id: column from which ids are made, after the benchmark's prefix; None: the row number is used.
        rows: how many rows it has; copies differ.
        revision: a commit that public evaluation code pins; None if none was found.
    """

    name: str
    config: str | None = None
    split: str = "test"
    problem: str = "problem"
    answer: str = "answer"
    id: str | None = None
    rows: int
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """One split of a benchmark.

    Attributes:
        file: its file in a data folder, JSONL with id, problem and answer.
        rows: problems in that file.
        sha256: `content_hash` of that file.
        answers_sha256: `answers_hash`, for benchmarks with integer answers; the same for every copy.
        hub: the same on the hub.
    """

    file: str
    rows: int
    sha256: str
    answers_sha256: str | None = None
    hub: Hub


@dataclass(frozen=True, kw_only=True)
class KnownWrong:
    """A gold that is wrong upstream. Found by the hash of its problem's text, because ids differ between copies."""

    gold: str
    should_be: str
    why: str
    problem_sha256: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is known about one benchmark.

    Attributes:
        prefix: of the ids of rows from the hub.
        clean: applied to every answer of a hub copy, so that it matches the files.
        known_wrong: by id in the file.
        unparsed: ids whose gold math-verify 0.9.0 cannot read; their reason is `bad_gold`.
        max_new_tokens: default token budget of a completion.
    """

    name: str
    summary: str
    licence: str
    content: Mapping[str, Content]
    prefix: str
    clean: Callable[[str], str] = str.strip
    known_wrong: Mapping[str, KnownWrong] = field(default_factory=dict)
    unparsed: tuple[str, ...] = ()
    max_new_tokens: int = 8192


# Row counts and hashes are of the files of QwenLM/Qwen2.5-Math a45202b (aime24, amc23, minerva, olympiadbench),
# GAIR-NLP/AIME-Preview 7011a9e (aime25), hkust-nlp/simpleRL-reason cf1c785 (math500) and openai/grade-school-math
# 3101c7d (gsm8k). A revision of the hub is here only because public code on GitHub pins it: a search in November 2026
# found each of them in at least five files. No hash is of a hub copy: none was downloaded to make this table.
_TABLE = (
    Benchmark(
        name="aime24",
        summary="AIME 2024 I and II, 30 problems, integers from 0 to 999",
        licence="problems: Mathematical Association of America",
        prefix="aime24-",
        clean=canonical_integer,
        content={
            "test": Content(
                file="aime24.jsonl",
                rows=30,
                sha256="7441213e1597a0a6c43e1d113f71b52314a4aa50d45c0559dad022e2548e3d2e",
                answers_sha256="26b2e319e14bdec51519f4cbb0a47ad57a80751c03b39c937514c67994cea9f2",
                hub=Hub(
                    name="HuggingFaceH4/aime_2024",
                    split="train",
                    id="id",
                    rows=30,
                    revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
                ),
            )
        },
    ),
    Benchmark(
        name="aime25",
        summary="AIME 2025 I and II, 30 problems, integers from 0 to 999",
        licence="problems: Mathematical Association of America",
        prefix="aime25-",
        clean=canonical_integer,
        content={
            "test": Content(
                file="aime25.jsonl",
                rows=30,
                sha256="52b8f3efd34a37c1a13ff16159e4b15b82536bcf7d5f381a94d5fae1c30f3413",
                answers_sha256="a0239316151158f3806ad95fec73b0b2189857a41968a29ef2f334aaef4fd367",
                hub=Hub(name="math-ai/aime25", rows=30, revision="563bb8404243c5f09de6ec262f2db674fe5bce9b"),
            )
        },
    ),
    Benchmark(
        name="amc23",
        summary="AMC 12 2023 as open questions, 40 problems, integers",
        licence="problems: Mathematical Association of America",
        prefix="amc23-",
        clean=canonical_integer,
        content={
            "test": Content(
                file="amc23.jsonl",
                rows=40,
                sha256="58a3890552c0067ea744aac9a5d7f28b82951b72f5adff7349a61ab82dbea94a",
                answers_sha256="395f5c1282d3240db046ebebbda62ecb1515401edc317595d195891a78895d7c",
                hub=Hub(
                    name="math-ai/amc23",
                    problem="question",
                    id="id",
                    rows=40,
                    revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
                ),
            )
        },
    ),
    Benchmark(
        name="math500",
        summary="MATH-500, 500 problems of MATH's test set",
        licence="MIT",
        prefix="",
        content={
            "test": Content(
                file="math500.jsonl",
                rows=500,
                sha256="a4c876d45576febf7c35e7186044001406ca2958765656ad63d714af4133e960",
                hub=Hub(
                    name="HuggingFaceH4/MATH-500",
                    id="unique_id",
                    rows=500,
                    revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
                ),
            )
        },
    ),
    Benchmark(
        name="minerva",
        summary="Minerva's 272 problems from courses of MIT OpenCourseWare",
        licence="CC BY-NC-SA (MIT OpenCourseWare): not for commercial use",
        prefix="minerva-",
        content={
            "test": Content(
                file="minerva.jsonl",
                rows=272,
                sha256="a3da7b537056f3532c4f9f3993cd72337e5620aaadd293c43f805804f8b75e38",
                hub=Hub(
                    name="math-ai/minervamath",
                    problem="question",
                    rows=272,
                    revision="ee46ddc498933b1977577953250ca5c66be64f96",
                ),
            )
        },
        known_wrong={
            "minerva-173": KnownWrong(
                gold="1",
                should_be="2",
                why="the coefficient of CO in 2 CO + O2 -> 2 CO2",
                problem_sha256="2a7eb6fc3f8c018bbe87839ea5f4a6466f0caa286be56ecbc2ece1b6614d3fce",
            )
        },
        unparsed=("minerva-5", "minerva-27", "minerva-38", "minerva-49", "minerva-269"),
    ),
    Benchmark(
        name="olympiadbench",
        summary="OlympiadBench, open-ended text-only mathematics in English, 675 problems",
        licence="MIT",
        prefix="olympiad-",
        clean=without_dollars,
        content={
            "test": Content(
                file="olympiadbench.jsonl",
                rows=675,
                sha256="676e265428de19ff5cece2f49876eb1310cd223fb00e5610465e6a5a80dcecd2",
                # the hub's copy has one problem fewer than Qwen2.5-Math's: two public manifests give 674 rows
                hub=Hub(
                    name="Hothan/OlympiadBench",
                    config="OE_TO_maths_en_COMP",
                    split="train",
                    problem="question",
                    answer="final_answer",
                    id="id",
                    rows=674,
                    revision="91184b52131e7fc9455fef848035173aea8cc01a",
                ),
            )
        },
        known_wrong={
            "olympiad-2349": KnownWrong(
                gold="221,$8",
                should_be="221, 8",
                why="a broken separator: m = 221 and n = 8",
                problem_sha256="a1ca5d792dfe9b0973e9f187dfd3df6fe35095b7613373bcbed626b36ea8dd07",
            )
        },
        unparsed=("olympiad-1782", "olympiad-2045"),
    ),
    Benchmark(
        name="gsm8k",
        summary="GSM8K, grade-school word problems: 7,473 to train on, 1,319 to test",
        licence="MIT",
        prefix="gsm8k-",
        clean=after_hashes,
        max_new_tokens=1024,
        content={
            "train": Content(
                file="gsm8k_train.jsonl",
                rows=7473,
                sha256="29d7e066bfa00b26ca2d7e7f75878d763b0b676345067875b49c9fbd03d5c3f4",
                answers_sha256="36dad10be52d1e6d67d2322eabdf5a5fc4273d8aef9b666ff3e6fb1be3c06dd9",
                hub=Hub(
                    name="openai/gsm8k",
                    config="main",
                    split="train",
                    problem="question",
                    rows=7473,
                    revision="740312add88f781978c0658806c59bc2815b9866",
                ),
            ),
            "test": Content(
                file="gsm8k_test.jsonl",
                rows=1319,
                sha256="759b43e7f7f6fb7085ed5eb06b99a6cfb425cf73987b6616a72a480d11a15413",
                answers_sha256="a7866b369c33070b46c7faf00f7134260446239c9d2110444411847e433c79c7",
                hub=Hub(
                    name="openai/gsm8k",
                    config="main",
                    problem="question",
                    rows=1319,
                    revision="740312add88f781978c0658806c59bc2815b9866",
                ),
            ),
        },
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _TABLE}
