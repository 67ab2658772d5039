"""From a suite and a request to cells, cohorts and their identities."""
