"""The data scientist's side: look at mock data, rehearse and submit a study, run its rounds, report.

Never imports `hospital`, and no torch: a model is built and scored in the same sandbox that hospitals use.
"""

from datasites.researcher.federation import Federation
from datasites.researcher.study import Study

__all__ = ["Federation", "Study"]
