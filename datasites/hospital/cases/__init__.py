"""From a submission to a decision: frozen, examined, checked by policies, reviewed by two people. Runs no round."""
