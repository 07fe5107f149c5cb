"""The common data model of a study: features with type, unit, code system and *public* ranges.

Scaling uses the constants written here and never private statistics, so preparing a row reads no other row and
costs no budget. `encode` is the one function that turns a harmonised table into the numbers that are trained on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.manifest import LARGEST_NUMBER, Name

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

#: Encoded columns of a study. Preparing a row takes time and memory for each, in the datasite's own process.
MOST_COLUMNS = 4096
#: Largest absolute value that an encoded number may take, far above any that trains.
LARGEST_ENCODED = 2.0**20
_Figure = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


class SchemaError(DatasitesError, ValueError):
    """A table does not fit the common data model; names the column, the rule and the remedy."""


class Feature(Agreed):
    """One column of the common data model.

    number: cut to [low, high], then (value - centre) / scale. boolean: 0/1 less `centre` (a public share).
    category: one 0/1 column for each level but the first, each less its public share in `centres`.
    Missing values become the centre (zero after centring); `indicator` adds a 0/1 column that says so.
    """

    name: Name
    type: Literal["number", "boolean", "category"]
    description: Annotated[str, Field(max_length=1000)] = ""
    unit: Annotated[str, Field(max_length=60)] = ""
    code_system: Annotated[str, Field(max_length=200)] = ""
    low: _Figure | None = None
    high: _Figure | None = None
    centre: _Figure = 0.0
    scale: Annotated[float, Field(ge=1 / LARGEST_NUMBER, le=LARGEST_NUMBER)] = 1.0
    levels: Annotated[tuple[Name, ...], Field(max_length=MOST_COLUMNS)] = ()
    centres: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(max_length=MOST_COLUMNS)] = ()
    indicator: bool = False

    @model_validator(mode="after")
    def _fits_type(self) -> Self:
        if self.type == "number":
            if self.low is None or self.high is None or not self.low < self.high:
                raise ValueError(f"feature {self.name}: a number needs a public range, low < high")
            if not self.low <= self.centre <= self.high:
                raise ValueError(f"feature {self.name}: centre lies outside [low, high]")
            if (self.high - self.low) / self.scale > LARGEST_ENCODED:
                raise ValueError(
                    f"feature {self.name}: scale {self.scale:g} makes numbers beyond {LARGEST_ENCODED:g} of a range "
                    f"from {self.low:g} to {self.high:g}; choose about the spread of ordinary values"
                )
        elif not 0 <= self.centre <= 1:
            raise ValueError(f"feature {self.name}: centre of a {self.type} is a share, from 0 to 1")
        if self.type == "category":
            if len(self.levels) < 2 or len(set(self.levels)) != len(self.levels):
                raise ValueError(f"feature {self.name}: a category needs two or more distinct levels")
            if self.centres and len(self.centres) != len(self.levels) - 1:
                raise ValueError(f"feature {self.name}: centres has one share for each level but the first")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the encoded columns, in order."""
        if self.type == "category":
            names = tuple(f"{self.name}={level}" for level in self.levels[1:])
        else:
            names = (self.name,)
        return (*names, f"{self.name}?") if self.indicator else names

    def encode(self, values: pd.Series) -> np.ndarray:
        """Encode to float32 of shape (rows, len(columns)); raises `SchemaError` on a value of another type."""
        import numpy as np

        encoded = np.zeros((len(values), len(self.columns)), dtype=np.float32)
        self.encode_into(encoded, values)
        return encoded

    def encode_into(self, encoded: npt.NDArray[np.float32], values: pd.Series) -> None:
        """`encode` into an array of that shape; beside it, this takes memory for a column or two, however many."""
        import numpy as np

        missing = values.isna().to_numpy()
        if self.type == "category":
            codes = self._codes(values, missing)
            for column, centre in enumerate(self.centres or (0.0,) * (len(self.levels) - 1)):
                encoded[:, column] = (codes == column + 1) - centre
        else:
            number = _numbers(values)
            if (np.isnan(number) & ~missing).any():
                raise SchemaError(f"feature {self.name}: not all values are numbers")
            if self.type == "boolean":
                if not np.isin(number[~missing], (0.0, 1.0)).all():
                    raise SchemaError(f"feature {self.name}: not all values are 0 or 1")
                encoded[:, 0] = number - self.centre
            else:
                encoded[:, 0] = (np.clip(number, self.low, self.high) - self.centre) / self.scale
        encoded[missing] = 0.0
        if self.indicator:
            encoded[:, -1] = missing
        # A clip may give either of 0 and -0, by IEEE, and so by an element's place: adding 0 makes them one.
        encoded += np.float32(0)

    def _codes(self, values: pd.Series, missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """The place of each value's level, -1 for a missing one."""
        import numpy as np

        places = {level: place for place, level in enumerate(self.levels)}
        codes = np.fromiter((places.get(value, -1) for value in values), dtype=np.int32, count=len(values))
        if (codes[~missing] < 0).any():
            unknown = len(set(values[~missing].unique()) - places.keys())
            raise SchemaError(f"feature {self.name}: {unknown} value(s) outside its levels {list(self.levels)}")
        return codes

    def invent(self, rows: int, source: np.random.Generator) -> pd.Series:
        """Ordinary values as a harmonised table holds them: evenly over the range or the levels, some missing."""
        import pandas as pd

        values: list[object]
        if self.type == "category":
            values = [self.levels[code] for code in source.integers(len(self.levels), size=rows)]
        elif self.type == "boolean":
            values = list(source.integers(2, size=rows).astype(float))
        else:
            assert self.low is not None
            assert self.high is not None
            values = list(source.uniform(self.low, self.high, size=rows))
        if self.indicator:
            values = [
                None if missing else value for value, missing in zip(values, source.random(rows) < 0.1, strict=True)
            ]
        return pd.Series(values, dtype=object)


def _numbers(values: pd.Series) -> npt.NDArray[np.float64]:
    """Each value as a number by itself, NaN for a missing one and for a word."""
    import numpy as np

    if values.dtype == np.float64:
        return values.to_numpy()
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: object) -> float:
    try:
        return math.nan if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):  # as of pandas' NA, which is missing, too
        return math.nan


class DataModel(Agreed):
    """All features of a study and its label (a boolean column)."""

    format: Literal[1] = 1
    features: Annotated[tuple[Feature, ...], Field(max_length=MOST_COLUMNS)]
    label: Feature

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [feature.name for feature in (*self.features, self.label)]
        if len(set(names)) != len(names):
            raise ValueError("features.toml: a name stands twice")
        if not self.features:
            raise ValueError("features.toml: no features")
        if self.label.type != "boolean":
            raise ValueError(f"features.toml: the label {self.label.name} must be boolean")
        if len(self.columns) > MOST_COLUMNS:
            raise ValueError(
                f"features.toml: {len(self.columns)} encoded columns, the most are {MOST_COLUMNS}; leave out features, "
                "or levels that few patients have"
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Encoded column names in order."""
        return tuple(column for feature in self.features for column in feature.columns)

    def invent(self, rows: int, source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows that nobody has, encoded as ordinary ones are: x float32 (rows, columns), y float32 (rows,).

        Each column is drawn by itself, from what the data model says and nothing else.
        """
        import pandas as pd

        return self.encode(
            pd.DataFrame({feature.name: feature.invent(rows, source) for feature in (*self.features, self.label)})
        )

    def encode(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Encode a harmonised table to (x float32 (rows, columns), y float32 (rows,)).

        Raises `SchemaError` when a column is missing, a value does not fit, or a label is missing.
        """
        import numpy as np

        wanted = [feature.name for feature in (*self.features, self.label)]
        absent = [name for name in wanted if name not in table.columns]
        if absent:
            raise SchemaError(
                f"no column {', '.join(absent)}; a table in the study's terms has one for each feature and the label"
            )
        if table[self.label.name].isna().any():
            raise SchemaError(f"label {self.label.name}: missing in some rows; leave those rows out")
        x, first = np.zeros((len(table), len(self.columns)), dtype=np.float32), 0
        for feature in self.features:
            last = first + len(feature.columns)
            feature.encode_into(x[:, first:last], table[feature.name])
            first = last
        y = self.label.model_copy(update={"centre": 0.0, "indicator": False}).encode(table[self.label.name])[:, 0]
        return x, y
