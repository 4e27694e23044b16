"""Great Expectations: the suites, their run over statistics in a database or a frame, and the data docs.

A suite's expectations are the row checks of `cslm.validation.checks`, once more: as delivered, each may be
failed by `max_quarantined` of the rows; on what was accepted, by none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.validate.offline import Outcome, make_self_contained
from cslm.validation.checks import Check

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import: nothing is sent to the makers of the library

import great_expectations as gx
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.core.expect_column_pair_values_a_to_be_greater_than_b import (
    ExpectColumnPairValuesAToBeGreaterThanB,
)
from great_expectations.expectations.core.expect_column_values_to_be_between import (
    ExpectColumnValuesToBeBetween,
)
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_be_unique import ExpectColumnValuesToBeUnique
from great_expectations.expectations.core.expect_column_values_to_not_be_null import (
    ExpectColumnValuesToNotBeNull,
)
from great_expectations.expectations.core.expect_table_columns_to_match_set import ExpectTableColumnsToMatchSet
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.row_conditions import Column

SITE = "validation"
EXAMPLES = 20
RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": EXAMPLES,
    "unexpected_index_column_names": ["id"],
}

for noisy in ("great_expectations", "great_expectations.checkpoint"):
    logging.getLogger(noisy).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Failure:
    """An expectation that was not met: of which suite, and the numbers."""

    suite: str
    what: str
    numbers: str

    def __str__(self) -> str:
        return f"{self.suite}: {self.what} - {self.numbers}"


def expectations_of(checks: Sequence[Check], mostly: float) -> Iterator[Expectation]:
    """The expectation of each check, met if `mostly` of the rows pass it."""
    for check in checks:
        common: dict[str, Any] = {"column": check.column, "mostly": mostly}
        if check.language is not None:
            common["row_condition"] = Column("language") == check.language
        if check.present:
            yield ExpectColumnValuesToNotBeNull(**common)
        elif check.allowed is not None:
            yield ExpectColumnValuesToBeInSet(value_set=list(check.allowed), **common)
        else:
            yield ExpectColumnValuesToBeBetween(min_value=check.low, max_value=check.high, **common)


def columns(names: Sequence[str]) -> Expectation:
    """The table has these columns, and no others."""
    return ExpectTableColumnsToMatchSet(column_set=list(names), exact_match=True)


def unique(column: str, mostly: float) -> Expectation:
    """No value of the column is there twice."""
    return ExpectColumnValuesToBeUnique(column=column, mostly=mostly)


def between(column: str, low: float | None = None, high: float | None = None) -> Expectation:
    """All values of the column are in a range."""
    return ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)


def at_most(column: str, limit: str) -> Expectation:
    """In every row, `column` is not above the column `limit`."""
    return ExpectColumnPairValuesAToBeGreaterThanB(column_A=limit, column_B=column, or_equal=True)


class Suites:
    """Runs suites and renders what happened as a site.

    Args:
        database: file of the SQLite database that `check_query` asks.
    """

    def __init__(self, database: Path) -> None:
        stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)  # else it leaves a folder in /tmp
        config = DataContextConfig(
            store_backend_defaults=stores,
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        )
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._frames = self._context.data_sources.add_pandas("frames")
        self._database = self._context.data_sources.add_sqlite(
            "statistics", connection_string=f"sqlite:///{database.absolute()}", create_temp_table=False
        )
        self.outcomes: list[Outcome] = []
        self.failures: list[Failure] = []

    @property
    def run(self) -> int:
        """How many expectations ran."""
        return sum(outcome.total for outcome in self.outcomes)

    def check(self, name: str, frame: pd.DataFrame, expectations: Sequence[Expectation]) -> None:
        """Run one suite over one frame; what fails goes to `failures`."""
        batch = self._frames.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        self._run(name, batch, expectations, {"dataframe": frame})

    def check_query(self, name: str, query: str, expectations: Sequence[Expectation]) -> None:
        """Run one suite over what a query finds in the database; what fails goes to `failures`."""
        batch = self._database.add_query_asset(name, query).add_batch_definition_whole_table(name)
        self._run(name, batch, expectations, None)

    def _run(
        self, name: str, batch: Any, expectations: Sequence[Expectation], parameters: dict[str, Any] | None
    ) -> None:
        suite = gx.ExpectationSuite(name=name)
        for expectation in expectations:
            suite.add_expectation(expectation)
        definition = gx.ValidationDefinition(name=name, data=batch, suite=self._context.suites.add(suite))
        definition = self._context.validation_definitions.add(definition)
        result = definition.run(
            batch_parameters=parameters,
            result_format=RESULT_FORMAT,
            run_id=RunIdentifier(run_name="validate"),
        )
        met = sum(bool(each.success) for each in result.results)
        self.outcomes.append(Outcome(name, met, len(result.results)))
        self.failures += [_failure(name, each) for each in result.results if not each.success]

    def write_docs(self, folder: Path, refused: str, refused_file: str) -> None:
        """Data docs of all that ran, as a site that needs no network: `folder/index.html`.

        It says what was `refused`, and links to the file in `folder` that lists it.
        """
        self._context.add_data_docs_site(
            SITE,
            {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,  # type: ignore[typeddict-unknown-key] # the type lacks it
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(folder.absolute()),
                },
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        self._context.build_data_docs(site_names=[SITE])
        make_self_contained(folder, self.outcomes, refused, refused_file)


def _failure(suite: str, result: Any) -> Failure:
    config = result.expectation_config
    hidden = ("batch_id", "mostly", "result_format")
    told = {key: value for key, value in config.kwargs.items() if key not in hidden and value is not None}
    what = f"{config.type}({', '.join(f'{key}={_short(value)}' for key, value in told.items())})"
    trouble = [info["exception_message"] for info in _exceptions(result.exception_info)]
    if trouble:
        return Failure(suite, what, f"could not be computed: {trouble[0]}")
    numbers = result.result
    if numbers.get("unexpected_count") is None:
        return Failure(suite, what, f"observed {numbers.get('observed_value') or numbers}")
    allowed = 1 - float(config.kwargs.get("mostly") or 1)
    named = numbers.get("partial_unexpected_index_list") or []
    rows = map(dict, named[:3])
    examples = ", ".join(f"{row.pop('id')}: {' '.join(map(_short, row.values()))}" for row in rows)
    return Failure(
        suite,
        what,
        f"{numbers['unexpected_count']} of {numbers['element_count']} rows fail, "
        f"{allowed:.1%} may (for example {examples})",
    )


def _exceptions(info: Any) -> list[dict[str, Any]]:
    """Great Expectations gives one record, or one for each metric that could not be computed."""
    records = [info] if "raised_exception" in info else list(info.values())
    return [record for record in records if record.get("raised_exception")]


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) < 100 else text[:97] + "..."
