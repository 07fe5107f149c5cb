"""What is invented looks like what is encoded, and tells nothing but the data model."""

import numpy as np
import pandas as pd

from datasites.study.schema import DataModel, Feature

MODEL = DataModel(
    features=(
        Feature(name="age", type="number", low=18.0, high=98.0, centre=58.0, scale=20.0),
        Feature(name="diabetes", type="boolean", centre=0.25, indicator=True),
        Feature(name="ward", type="category", levels=("a", "b", "c"), centres=(0.5, 0.25)),
    ),
    label=Feature(name="died", type="boolean"),
)


def test_invented_rows_are_ordinary_encoded_ones():
    x, y = MODEL.invent(4000, np.random.default_rng(0))
    assert x.shape == (4000, len(MODEL.columns))
    assert x.dtype == y.dtype == np.float32
    age, diabetes, missing, b, c = x.T
    assert age.min() >= -2
    assert age.max() <= 2
    assert abs(age.mean()) < 0.1
    assert age.std() > 1
    assert set(missing.tolist()) == {0.0, 1.0}
    assert 0.05 < missing.mean() < 0.15
    assert set(diabetes[missing == 0].tolist()) == {-0.25, 0.75}
    assert (diabetes[missing == 1] == 0).all()
    assert {(first, second) for first, second in zip(b.tolist(), c.tolist(), strict=True)} == {
        (-0.5, -0.25),
        (0.5, -0.25),
        (-0.5, 0.75),
    }
    assert set(y.tolist()) == {0.0, 1.0}


def test_invented_values_are_those_that_a_table_may_hold():
    source = np.random.default_rng(1)
    columns = (*MODEL.features, MODEL.label)
    drawn = {feature.name: feature.invent(50, source) for feature in columns}
    table = pd.DataFrame({name: pd.Series(values).mask(missing) for name, (values, missing) in drawn.items()})
    x, y = MODEL.encode(table)
    again, labels = MODEL.invent(50, np.random.default_rng(1))
    assert (x == again).all()
    assert (y == labels).all()
