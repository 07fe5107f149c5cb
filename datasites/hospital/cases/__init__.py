"""From a submission to a decision: frozen, examined, held against policies, reviewed by two people. Runs no round."""
