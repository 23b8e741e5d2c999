# SPDX-License-Identifier: MIT
"""What a run reads: files and their columns, gold answers, chat templates, and the arithmetic world."""

import csv
import gzip
import json
import shutil

import pytest
from conftest import is_equal, run, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import renio
from renio import UserError, fill_prompt, prompt_ids, read_problems

BOX = r"It is \boxed{2}."


@pytest.mark.parametrize(
    "row, solution, answer",
    [
        (dict(problem="q", solution="s", Answer="7"), "s", "7"),
        (dict(question="q", answer="2 + 2 = 4\n#### 4"), "2 + 2 = 4\n#### 4", "4"),
        (dict(prompt="q", solution="so\n#### 1,000\n"), "so\n#### 1,000\n", "1,000"),
        (dict(problem="q", deepseek_solution=r"no \boxed{1}, so \boxed{\frac{1}{2}}"), None, r"\frac{1}{2}"),
        (dict(problem="q", solution="no box"), "no box", None),
        (dict(problem="q", answer=5), None, "5"),
        (dict(problem="q", answer=0, solution=BOX), BOX, "0"),
        (dict(problem="q", answer="", solution=BOX), BOX, "2"),
        (dict(problem="q", answer=" \n", solution=BOX), BOX, "2"),
        (dict(problem="q", answer=float("nan"), solution=BOX), BOX, "2"),
        (dict(problem="q", answer=None, solution=BOX), BOX, "2"),
        (dict(problem="q", answer=None, Answer="3", solution=BOX), BOX, "3"),
        (dict(problem=None, question="q", answer="3"), None, "3"),
        (dict(problem="q", answer=["3", "5"]), None, "3, 5"),
        (dict(problem="q", answer=["1,000"]), None, "1,000"),
        (dict(problem="q", answer=[], solution=BOX), BOX, "2"),
        (dict(problem="q", solution=f"#### Step 1\n{BOX}"), f"#### Step 1\n{BOX}", "2"),
        (dict(problem="q", answer="3", domain="algebra"), None, "3"),
    ],
    ids=str,
)
def test_problem_solution_and_answer_are_found_in_a_row(tmp_path, row, solution, answer):
    [found] = read_problems(write_rows(tmp_path / "rows.jsonl", row))
    solution = row.get("deepseek_solution", solution)
    assert found == dict(problem="q", solution=solution, answer=answer)


def test_a_list_of_answers_is_graded_as_several(tmp_path):
    [row] = read_problems(write_rows(tmp_path / "rows.jsonl", dict(problem="q", answer=["3", "5"])))
    assert is_equal(r"\boxed{3, 5}", row["answer"]) and not is_equal(r"\boxed{3}", row["answer"])


def test_a_column_may_hold_a_number_and_a_text_of_it(tmp_path):
    rows = [dict(problem="q", answer=5), dict(problem="q", answer="5"), dict(problem="q", answer=[5, "6"])]
    assert [row["answer"] for row in read_problems(write_rows(tmp_path / "a.jsonl", *rows))] == ["5", "5", "5, 6"]


def test_rows_of_other_subjects_are_left_out_and_counted(tmp_path, capsys):
    rows = [dict(problem=domain, domain=domain) for domain in ("math", "code", "physics", "number theory")]
    source = write_rows(tmp_path / "a.jsonl", *rows)
    assert [row["problem"] for row in read_problems(source)] == ["math", "number theory"]
    assert "2 rows of other domains than math are left out" in capsys.readouterr().out
    assert [row["problem"] for row in read_problems(source, task="code")] == ["code", "number theory"]


ROWS = [dict(problem="p é", solution="s", answer="1"), dict(problem="q,\n", solution="t", answer="2")]


def write_table(path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.name == "list.json":
        path.write_text(json.dumps(ROWS, indent=2))
    else:
        path.write_text(text, encoding="utf-8-sig" if "bom" in path.name else "utf-8")


@pytest.mark.parametrize(
    "name", ["a.jsonl", "bom.jsonl", "list.json", "lines.json", "a.jsonl.gz", "a.csv", "a.parquet"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    write_table(tmp_path / name)
    assert read_problems(str(tmp_path / name)) == ROWS
    assert read_problems(str(tmp_path / name), limit=1) == ROWS[:1]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no rows"),
        (b'{"problem": "x", "solution": "y"}\n\n{oops}', "line 3: not JSON"),
        ("{}".encode("utf-16"), "can't be read"),
        (b"[1, 2]", "row 1: expected columns, found list"),
        (b'{"quiz": "x"}', r"row 1: no text in a column problem or question or prompt; its columns are quiz"),
        (
            b'{"problem": "x", "solution": "y"}\n{"problem": null, "solution": "2"}',
            "row 2: no text in a column problem",
        ),
        (b'{"problem": "x", "answer": "2"}', "row 1: no text in a column solution or deepseek_solution; its columns"),
        (b'{"problem": "x", "solution": 2}', "row 1: no text in a column solution"),
        (b'{"problem": 5, "solution": "2"}', "row 1: no text in a column problem"),
        (b'{"problem": "bad \\ud83d here", "solution": "y"}', "row 1: problem .* half of a surrogate pair"),
        (
            b'{"problem": "x", "solution": "y", "answer": {"value": 2}}',
            "row 1: the answer is neither text nor a number",
        ),
        (b'{"problem": "x", "solution": "y", "answer": true}', "row 1: the answer is neither text nor a number"),
    ],
)
def test_bad_data_is_named_by_file_and_row(tmp_path, content, message):
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_problems(str(tmp_path / "data.jsonl"), need_solution=True)
    assert "data.jsonl" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="nowhere.csv: no such file"):
        read_problems("nowhere.csv")


COLUMNS = st.sampled_from(["problem", "question", "solution", "answer", "Answer", "domain", "x"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(COLUMNS, inner, max_size=5))


@given(rows=st.lists(st.dictionaries(COLUMNS, JSON) | JSON, max_size=4), tail=st.binary(max_size=8), need=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_data_is_read_or_refused_in_one_line(tmp_path, rows, tail, need):
    path = tmp_path / "data.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + tail)
    try:
        for row in read_problems(str(path), need_solution=need):
            assert row["problem"].strip() and all(value is None or value.strip() for value in row.values())
    except UserError as error:
        assert "\n" not in str(error)


# --- which rows train -------------------------------------------------------------------------------------------------

GOOD = dict(problem="a 1+1", solution="\\boxed{ a 1+1 2 }", answer="2")


def test_rows_that_cannot_train_are_skipped_and_counted(tmp_path, micro_model, capsys):
    blank = [dict(GOOD, solution=text) for text in ("", None, " \n")]
    source = write_rows(tmp_path / "a.jsonl", GOOD, *blank, dict(GOOD, problem="1+8 " * 300), dict(GOOD, answer=None))
    run(tmp_path / "run", f"--method opsd --model {micro_model} --dataset {source}")
    said = capsys.readouterr().out
    assert "3 without a solution" in said and "1 with a prompt of more than 256 tokens (--max_prompt_tokens)" in said
    source = write_rows(tmp_path / "blank.jsonl", *blank)
    with pytest.raises(SystemExit, match="none of 3 problems can be used: 3 without a solution"):
        run(tmp_path / "blank", f"--method opsd --model {micro_model} --dataset {source}")


def test_prompts_that_are_mostly_unknown_to_the_tokenizer_are_refused(tmp_path, micro_model):
    source = write_rows(tmp_path / "a.jsonl", dict(problem="How many legs have two cats?", solution="a 1+1 2 " * 9))
    with pytest.raises(SystemExit, match="most of a prompt is unknown to the tokenizer of .*micro: 'How many legs"):
        run(tmp_path / "run", f"--method sft --model {micro_model} --dataset {source}")


def test_training_that_needs_answers_is_refused_on_data_without(tmp_path, micro_model):
    source = write_rows(tmp_path / "a.jsonl", dict(problem="a 1+1", solution="a 2"))
    for words in ("grpo --generations 2", "opsd --weighting correctness"):
        with pytest.raises(SystemExit, match=f"--dataset {source}: no answers"):
            run(tmp_path / "run", f"--method {words} --model {micro_model} --dataset {source}")
    run(tmp_path / "run", f"--method opsd --model {micro_model} --dataset {source}")
    source = write_rows(tmp_path / "b.jsonl", dict(problem="Double x.", solution="2 * x", answer="2 * x"))
    assert [renio.read_problems(source, task=task)[0]["answer"] for task in ("math", "code")] == ["2 * x", None]


# --- chat templates ---------------------------------------------------------------------------------------------------


def with_template(folder, micro_model, template):
    shutil.copytree(micro_model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return renio.load_tokenizer(str(folder))


def test_a_template_that_wants_content_in_parts_gets_parts(tmp_path, micro_model):
    parts = (
        "{% for m in messages %}<user> {% for c in m['content'] %}{{ c['text'] }}{% endfor %} <assistant>{% endfor %}"
    )
    tokenizer = with_template(tmp_path / "m", micro_model, parts)
    assert tokenizer.decode(prompt_ids(tokenizer, ["a 1+1"], [False])[0]) == "<user> a 1+1 <assistant>"


def test_a_tokenizer_of_several_named_templates_trains_and_is_saved(tmp_path, micro_model):
    tokenizer = with_template(tmp_path / "m", micro_model, "")
    default = renio.arith_tokenizer().chat_template
    tokenizer.chat_template = dict(default=default, tool_use="{{ raise_exception('no tools') }}")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "m", save_jinja_files=False)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "m").chat_template, dict)
    run(tmp_path / "run", f"--method opsd --model {tmp_path / 'm'} --save_steps 1")
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint-1").chat_template == default


def test_qwen3s_template_renders_with_thinking_on_and_off(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "qwen3-tokenizer")
    row = dict(problem="What is 2 + 2?", solution="It is four.")

    def rendered(template, thinking):
        return tokenizer.decode(prompt_ids(tokenizer, [fill_prompt(template, row)], [thinking])[0])

    student, teacher = renio.PROMPTS["math"]
    off, on = rendered(student, False), rendered(teacher, True)
    assert off.startswith("<|im_start|>user\nWhat is 2 + 2?") and "\\boxed{}" in off and "four" not in off
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert on.endswith("<|im_start|>assistant\n") and "It is four." in on


def test_a_template_is_filled_once_and_keeps_all_other_braces():
    row = dict(problem=r"Is {solution} in \frac{1}{2}?", solution="{problem}")
    filled = fill_prompt(r"{problem} Put it in \boxed{}. {solution} {x}", row)
    assert filled == r"Is {solution} in \frac{1}{2}? Put it in \boxed{}. {problem} {x}"


def test_real_training_sets_have_solutions_and_answers(shared):
    for name, first in (("gsm8k_train_400", "72"), ("math_train_400", None)):
        rows = read_problems(str(shared / "data" / f"{name}.jsonl"), need_solution=True)
        assert len(rows) == 400 and all(row["answer"] for row in rows) and first in (None, rows[0]["answer"])


# --- synthetic problems -----------------------------------------------------------------------------------------------


def test_arithmetic_solutions_are_correct_known_and_not_in_the_test_split(tokenizer):
    rows = renio.arith_rows(300, split="test")
    for row in rows:
        assert row["answer"] == "".join(str(eval(operation) % 10) for operation in row["problem"].split()[1::2])
        assert renio.arith_verdict(row["solution"], row["answer"]) == "equal"
        ids = tokenizer(row["demonstration"])["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == row["demonstration"]
    assert not {row["problem"] for row in rows} & {row["problem"] for row in renio.arith_rows(3000)}


def test_problems_in_english_are_correct_and_hardly_any_is_both_trained_and_tested():
    rows = renio.product_rows(200, split="test")
    for row in rows:
        asked = row["problem"].removeprefix("Work out ").rstrip(".").split(", ")
        assert row["answer"] == ", ".join(str(eval(part)) for part in asked) == renio.extract_boxed(row["solution"])
        assert all(f"{part} = {eval(part)}" in row["solution"] for part in asked)
    assert is_equal(rows[0]["solution"], rows[0]["answer"])
    trained = {row["problem"] for seed in (0, 1) for row in renio.product_rows(500, seed)}
    assert len({row["problem"] for row in rows} & trained) <= 2  # by chance


def test_results_of_gaps_are_guesses_and_a_recheck_mends_half_of_them():
    kinds = {gap: "unknown" if i % 2 == 0 else "doubted" for i, gap in enumerate(renio.operation_gaps())}
    assert len(kinds) == 54
    found = {(kind, again): [] for kind in ("taught", "unknown", "doubted") for again in (False, True)}
    for row in renio.arith_rows(1500, gaps=True):
        words, before = renio.extract_boxed(row["demonstration"]).replace("wait ", "").split(), None
        for name, operation, result in zip(*[iter(words)] * 3, strict=True):
            is_correct = renio.result_of(operation) == int(result)
            found[kinds.get(operation, "taught"), name == before].append(is_correct)
            before = name
    share = {key: sum(verdicts) / len(verdicts) for key, verdicts in found.items()}
    assert share["taught", True] == share["doubted", True] == 1 and 0.97 < share["taught", False] < 1
    for guessed in (("unknown", False), ("doubted", False), ("unknown", True)):
        assert 0.05 < share[guessed] < 0.15, guessed
    for kind in ("unknown", "doubted"):
        assert 0.25 < len(found[kind, True]) / len(found[kind, False]) < 0.35


@pytest.mark.parametrize(
    "box, results",
    [
        ("a 3+8 1 b 7-5 2", dict(a="1", b="2")),
        ("a 3+8 4 wait a 3+8 1 b 7-5 2", dict(a="1", b="2")),  # the last counts
        ("a 3+8 1 b 7-5 2 wait a 3+8 4", dict(a="4", b="2")),
        ("a 3+8 1 b 7-5", dict(a="1")),
        ("", {}),
    ],
)
def test_the_last_result_of_each_step_in_the_box_is_its_answer(box, results):
    text = f"b 7-5 9 \\boxed{{ {box} }}"  # nothing before the box counts
    assert renio.arith_results(text) == results
    assert renio.arith_verdict(text, "12") == ("equal" if list(results.values()) == ["1", "2"] else "different")
    assert renio.arith_verdict(text.removesuffix("}"), "12") == "no box"


def test_a_completion_is_graded_up_to_its_end_and_not_at_all_without_an_answer(tokenizer, model, monkeypatch):
    box = tokenizer("\\boxed{ a 3+8 1 }")["input_ids"]
    end, other = tokenizer.convert_tokens_to_ids(["wait", "}"])  # no special token
    model.generation_config.eos_token_id = [1, end]
    assert renio.decode(tokenizer, [*box, end, other], [1, end]) == "\\boxed{ a 3+8 1 }"
    config = renio.parse_config("--method opsd --task arith --output_dir x".split())

    def verdict(completion, answer="1"):
        example = renio.Example(dict(answer=answer), [3], [3])
        monkeypatch.setattr(renio, "sample", lambda *_: [(0, completion)])
        [rollout] = renio.Sampler(config, model, tokenizer, [example], renio.Devices("cpu"))([example], 0)
        assert rollout.truncated == (completion[-1] != end)
        return rollout.correct

    assert verdict([*box, end]) is True and verdict([*box, end], "2") is False
    assert verdict(box) is True  # cut, but behind its box
    assert verdict([*box[:-1], end]) is False and verdict(box[:-1]) is None and verdict([*box, end], None) is None
