"""PySyft over the same store: peers, mocks, submissions and what was decided on them, with guards. Carries no round."""
