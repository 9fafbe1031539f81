"""Python blocks of README and docs run as printed; those with prompts as doctests."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import (
    collectives,
    evidence,
    evidence_tables,
    fused,
    lazy,
    ngram_table,
    post_training,
    results,
    step,
    switching,
    tpu_step,
    tuning,
)
from benchmarks.geometry import report as geometry_tables
from benchmarks.study_rows import Study
from examples.study import records

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
@pytest.mark.usefixtures("standard_promotion")
def test_blocks_without_prompts_run(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        if ">>>" not in block:
            exec(block, namespace)


@pages
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pages
def test_files_named_in_the_text_exist(page: Path) -> None:
    names = re.findall(r"`((?:tests|docs|examples|configs)/[\w/.]+)`", page.read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_costs_on_pods_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "pods.md").read_text()
    outputs = sorted((results.RESULTS / "pods").glob("*.txt"))
    assert outputs
    assert [file.name for file in outputs if file.read_text() not in page] == []


def test_table_of_collectives_is_that_of_the_results() -> None:
    content = json.loads((results.RESULTS / "collectives.json").read_text())
    table = collectives.markdown(content["measured"])
    assert table in (ROOT / "docs" / "sharding.md").read_text()


def test_tables_of_lazy_rows_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "lazy.md").read_text()
    steps = json.loads((results.RESULTS / "lazy.json").read_text())
    assert lazy.markdown(steps["measured"]) in page
    models = json.loads((results.RESULTS / "ngram_table.json").read_text())
    assert ngram_table.markdown(models) in page
    assert ngram_table.markdown_of_sweep(models) in " ".join(page.split())


def test_tables_of_geometry_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "geometry.md").read_text()
    content = json.loads((results.RESULTS / "geometry.json").read_text())
    assert [
        table for table in geometry_tables.tables(content) if table not in page
    ] == []


def test_tables_of_the_fused_step_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "fused.md").read_text()
    content = json.loads((results.RESULTS / "fused.json").read_text())
    assert [table for table in fused.tables(content) if table not in page] == []


def test_tables_of_steps_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    on_cpu = json.loads((results.RESULTS / "step.json").read_text())["measured"]
    assert [table for table in on_cpu if step.markdown(on_cpu[table]) not in page] == []
    on_tpu = json.loads((results.RESULTS / "tpu_step.json").read_text())["measured"]
    assert tpu_step.markdown_of_training(on_tpu) in page
    for table, dtype in (
        ("256128x2048", "float32"),
        ("256128x2048", "bfloat16"),
        ("50304x768", "float32"),
    ):
        assert tpu_step.markdown_of_tables(on_tpu, table, dtype) in page


def test_tables_in_the_readme_are_those_of_the_results() -> None:
    page = (ROOT / "README.md").read_text()
    on_cpu = json.loads((results.RESULTS / "step.json").read_text())["measured"]
    on_tpu = json.loads((results.RESULTS / "tpu_step.json").read_text())["measured"]
    assert tpu_step.markdown_of_summary(on_cpu, on_tpu) in page
    study = Study(records.read(results.RESULTS / "study.jsonl"))
    assert evidence_tables.summary(study) in page
    assert evidence_tables.by_decay(study) in page


def test_evidence_is_that_of_the_results() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text()
    study = Study(records.read(results.RESULTS / "study.jsonl"))
    figures = [path.stem for path in results.RESULTS.glob("study_*.png")]
    assert evidence.page(study, figures) == page


def test_tables_of_switching_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "switching.md").read_text()
    content = json.loads((results.RESULTS / "switching.json").read_text())
    assert [table for table in switching.tables(content) if table not in page] == []


def test_tables_of_post_training_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "post_training.md").read_text()
    for benchmark in (tuning.FINETUNE, tuning.GRPO):
        tables = post_training.tables(benchmark, tuning.on_file(benchmark))
        assert [table for table in tables if table not in page] == []
