"""A hospital's table becomes the study's data model; who has withdrawn is left out. No message holds a value.

>>> import pandas as pd
>>> from datasites.hospital.data.harmonise import harmonise_column
>>> from datasites.hospital.data.mapping import Column
>>> from datasites.study.schema import Feature
>>> table = pd.DataFrame({"chol_mmol": ["5.2", "-9", "6.0"]})
>>> column = Column.model_validate({"from": "chol_mmol", "unit": "mmol/L", "factor": 38.67, "missing": [-9]})
>>> feature = Feature(name="chol", type="number", unit="mg/dL", low=100, high=600, centre=200)
>>> values, report = harmonise_column(table, feature, column)
>>> values.round(1).tolist(), report.missing
([201.1, nan, 232.0], 1)
"""
