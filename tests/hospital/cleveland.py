"""The settings of the hospital that tests run, for homes that are made in different processes. It imports nothing."""

EMAIL = "datasite@cleveland.example.org"
PATIENTS = 303
#: With a store and a database.
SETTINGS = """
organisation = "Cleveland"
email = "datasite@cleveland.example.org"
store = "{store}"
database = "{database}"
run_as_root = true

[[datasets]]
name = "heart"
table = "data/table.csv"
mapping = "mapping.toml"
mock = "data/mock.csv"
summary = "Heart disease"
declared_patients = 303
epsilon = 4.0
delta = 1e-5
study_epsilon = 3.0
held_out = 0.5
"""
