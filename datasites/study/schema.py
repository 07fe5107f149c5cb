"""The common data model of a study: features with type, unit, code system and *public* ranges.

Scaling uses the constants written here and never private statistics, so preparing a row reads no other row and
costs no budget. `encode` is the one function that turns a harmonised table into the numbers that are trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError
from datasites.study.manifest import LARGEST_NUMBER, Name

if TYPE_CHECKING:
    # Commands read a data model and encode nothing; a worker encodes rows that it invents, and has no tables.
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    #: Values of a feature, and which of them are missing, whatever stands there; (rows,) both.
    Values = tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]

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
        """Return the names of the encoded columns, in order."""
        if self.type == "category":
            names = tuple(f"{self.name}={level}" for level in self.levels[1:])
        else:
            names = (self.name,)
        return (*names, f"{self.name}?") if self.indicator else names

    def encode(self, values: pd.Series) -> np.ndarray:
        """Encode to float32 of shape (rows, len(columns)); raises `SchemaError` on a value of another type."""
        import numpy as np

        encoded = np.zeros((len(values), len(self.columns)), dtype=np.float32)
        self.encode_into(encoded, values.to_numpy(), values.isna().to_numpy())
        return encoded

    def encode_into(
        self, encoded: npt.NDArray[np.float32], values: npt.NDArray[np.generic], missing: npt.NDArray[np.bool_]
    ) -> None:
        """`encode` into an array of that shape; beside it, this takes memory for a column or two, however many.

        values: numbers or objects; where `missing`, whatever stands there.
        """
        import numpy as np

        if self.type == "category":
            codes = self._codes(values, missing)
            for column, centre in enumerate(self.centres or (0.0,) * (len(self.levels) - 1)):
                encoded[:, column] = (codes == column + 1) - centre
        else:
            number = _numbers(values, missing)
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

    def _codes(self, values: npt.NDArray[np.generic], missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """Return the place of each value's level, -1 for a missing one."""
        import numpy as np

        places = {level: place for place, level in enumerate(self.levels)}
        known = (-1 if absent else places.get(value, -1) for value, absent in zip(values, missing, strict=True))
        codes = np.fromiter(known, dtype=np.int32, count=len(values))
        if (codes[~missing] < 0).any():
            unknown = len(set(values[~missing]) - places.keys())
            raise SchemaError(f"feature {self.name}: {unknown} value(s) outside its levels {list(self.levels)}")
        return codes

    def invent(self, rows: int, source: np.random.Generator) -> Values:
        """Return ordinary values, evenly over the range or the levels, and which of them are missing."""
        import numpy as np

        values: npt.NDArray[np.generic]
        if self.type == "category":
            values = np.array(self.levels, dtype=object)[source.integers(len(self.levels), size=rows)]
        elif self.type == "boolean":
            values = source.integers(2, size=rows).astype(np.float64)
        else:
            assert self.low is not None
            assert self.high is not None
            values = source.uniform(self.low, self.high, size=rows)
        return values, source.random(rows) < 0.1 if self.indicator else np.zeros(rows, dtype=np.bool_)


def _numbers(values: npt.NDArray[np.generic], missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return each value as a number by itself, NaN for a missing one and for a word."""
    import numpy as np

    if values.dtype == np.float64:
        return np.where(missing, np.nan, values)
    pairs = zip(values, missing, strict=True)
    return np.array([np.nan if absent else _number(value) for value, absent in pairs], dtype=np.float64)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
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
            raise ValueError("features.toml: a name appears twice")
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
        """Return encoded column names in order."""
        return tuple(column for feature in self.features for column in feature.columns)

    def invent(self, rows: int, source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return rows that nobody has, encoded as ordinary ones are: x float32 (rows, columns), y float32 (rows,).

        Each column is drawn by itself, from what the data model says and nothing else.
        """
        drawn = [feature.invent(rows, source) for feature in (*self.features, self.label)]
        return self._encoded(drawn, rows)

    def encode(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Encode a harmonised table to (x float32 (rows, columns), y float32 (rows,)).

        Raises `SchemaError` when a column is missing, a value does not fit, or a label is missing.
        """
        wanted = [feature.name for feature in (*self.features, self.label)]
        absent = [name for name in wanted if name not in table.columns]
        if absent:
            raise SchemaError(
                f"no column {', '.join(absent)}; a table in the study's terms has one for each feature and the label"
            )
        if table[self.label.name].isna().any():
            raise SchemaError(f"label {self.label.name}: missing in some rows; leave those rows out")
        return self._encoded(((table[name].to_numpy(), table[name].isna().to_numpy()) for name in wanted), len(table))

    def encode_mock(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encode mock rows as real ones are: x and y as `encode` gives them, patients int64 (rows,) from 0 on.

        A column `patient` that is no feature of the study names each row's patient; else each row is one patient.
        Raises `SchemaError`.
        """
        import numpy as np

        x, y = self.encode(table)
        features = {feature.name for feature in (*self.features, self.label)}
        has_patients = "patient" in table.columns and "patient" not in features
        patients = table["patient"].to_numpy() if has_patients else np.arange(len(table))
        return x, y, np.unique(patients, return_inverse=True)[1].astype(np.int64)

    def _encoded(self, values: Iterable[Values], rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Encode values of the features and the label, in this order, each taken when the one before is done."""
        import numpy as np

        x, y, first = np.zeros((rows, len(self.columns)), dtype=np.float32), np.zeros((rows, 1), dtype=np.float32), 0
        label = self.label.model_copy(update={"centre": 0.0, "indicator": False})
        for feature, given in zip((*self.features, label), values, strict=True):
            last = first + len(feature.columns)
            feature.encode_into(y if feature is label else x[:, first:last], *given)
            first = last
        return x, y[:, 0]
